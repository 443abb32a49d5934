"""The cache of resized photos."""

import os
import pickle
import threading

import numpy as np
import pytest
from datasets import Dataset as Rows
from PIL import Image

from clip_itm.data import image_cache
from clip_itm.data.image_cache import ImageCache
from clip_itm.data.images import read_image
from clip_itm.data.rows import ROW_FEATURES
from clip_itm.seal import opened

SIDE = 32


def smooth_photo(width: int, height: int, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def rows_of(*images) -> Rows:
    stored = [image if isinstance(image, dict) else {"path": str(image), "bytes": None} for image in images]
    return Rows.from_dict(
        {
            "image": stored,
            "image_id": [str(number) for number in range(len(stored))],
            "captions": [["a"]] * len(stored),
            "caption_ids": [["0"]] * len(stored),
        },
        features=ROW_FEATURES,
    )


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    smooth_photo(90, 60).save(folder / "wide.jpg", quality=95)
    smooth_photo(60, 96, 1).save(folder / "tall.png")
    smooth_photo(40, SIDE, 2).save(folder / "small.jpg", quality=95)
    return folder


@pytest.fixture
def cache(tmp_path) -> ImageCache:
    return ImageCache(tmp_path / "cache", SIDE)


def stored(rows, number: int = 0):
    return rows[number]["image"]


def files_of(cache: ImageCache) -> list:
    return sorted(path for path in cache.folder.rglob("*") if path.is_file())


def test_copies_have_the_short_side_and_look_like_the_original(photos, cache):
    rows = rows_of(photos / "wide.jpg", photos / "tall.png")
    cache.build(rows)
    for number, (name, size, kind) in enumerate([("wide.jpg", (48, 32), "JPEG"), ("tall.png", (32, 51), "PNG")]):
        image = cache.image(stored(rows, number))
        assert image["path"].startswith(str(cache.folder))
        with Image.open(image["path"]) as copy:
            assert (copy.size, copy.format) == (size, kind)
        with Image.open(photos / name) as original:
            expected = np.asarray(original.resize(size, Image.Resampling.BICUBIC), dtype=float)
        difference = np.abs(np.asarray(read_image(image), dtype=float) - expected)
        assert difference.mean() < (1.5 if kind == "JPEG" else 1e-9)


def test_photos_that_are_not_larger_stay_as_they_are(photos, cache):
    rows = rows_of(photos / "small.jpg")
    cache.build(rows)
    assert cache.image(stored(rows)) == stored(rows)
    assert [opened(path.read_bytes()) for path in files_of(cache)] == [(b"", True)]


def test_without_a_copy_the_original_is_read(photos, cache):
    rows = rows_of(photos / "wide.jpg")
    assert cache.image(stored(rows)) == stored(rows)
    cache.build(rows)
    for path in files_of(cache):
        path.unlink()
    assert cache.image(stored(rows)) == stored(rows)


def test_photos_without_a_file_are_cached_by_their_bytes(photos, cache):
    rows = rows_of({"path": None, "bytes": (photos / "wide.jpg").read_bytes()})
    cache.build(rows)
    assert read_image(cache.image(stored(rows))).size == (48, 32)


def test_exif_turned_and_transparent_photos_become_upright_rgb(photos, cache):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    smooth_photo(90, 60).save(photos / "turned.jpg", exif=exif, quality=95)
    smooth_photo(64, 64).convert("RGBA").save(photos / "clear.png")
    rows = rows_of(photos / "turned.jpg", photos / "clear.png")
    cache.build(rows)
    turned = read_image(cache.image(stored(rows, 0)))
    assert turned.size == (32, 48)
    upright = read_image(stored(rows, 0)).resize((32, 48), Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(turned, dtype=float) - np.asarray(upright, dtype=float)).mean() < 1.5
    with Image.open(cache.image(stored(rows, 1))["path"]) as copy:
        assert copy.mode == "RGB"


def test_an_interrupted_build_goes_on_where_it_stopped(photos, cache, monkeypatch):
    names = [photos / f"{number}.png" for number in range(40)]
    for number, name in enumerate(names):
        smooth_photo(50, 50, number).save(name)
    rows = rows_of(*names)
    real, lock, calls = image_cache.to_rgb, threading.Lock(), []

    def interrupted(image):
        with lock:
            calls.append(1)
            if len(calls) == 8:
                raise KeyboardInterrupt
        return real(image)

    monkeypatch.setattr(image_cache, "to_rgb", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache.build(rows, num_workers=1)
    done = len(files_of(cache))
    assert 7 <= done < 40
    calls.clear()
    monkeypatch.setattr(image_cache, "to_rgb", lambda image: calls.append(1) or real(image))
    cache.build(rows, num_workers=2)
    assert len(calls) == 40 - done
    calls.clear()
    cache.build(rows)
    assert calls == []
    assert len(files_of(cache)) == 40
    assert all(read_image(cache.image(stored(rows, number))).size == (SIDE, SIDE) for number in range(40))


def test_a_file_that_was_being_written_is_never_served(photos, cache, monkeypatch):
    rows = rows_of(photos / "wide.jpg")

    def killed(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        cache.build(rows)
    assert cache.image(stored(rows)) == stored(rows)
    monkeypatch.undo()
    cache.build(rows)
    assert read_image(cache.image(stored(rows))).size == (48, 32)


def test_a_changed_original_gets_a_new_copy(photos, cache):
    rows = rows_of(photos / "wide.jpg")
    cache.build(rows)
    before = cache.image(stored(rows))
    smooth_photo(90, 60, seed=9).save(photos / "wide.jpg", quality=95)
    os.utime(photos / "wide.jpg", ns=(1, 1))
    assert cache.image(stored(rows)) == stored(rows), "the old copy is not served"
    cache.build(rows)
    after = cache.image(stored(rows))
    assert after != before
    expected = read_image(stored(rows)).resize((48, 32), Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(read_image(after), dtype=float) - np.asarray(expected, dtype=float)).mean() < 1.5


def test_another_short_side_is_another_copy(photos, tmp_path):
    rows = rows_of(photos / "wide.jpg")
    for side in (16, SIDE):
        ImageCache(tmp_path / "cache", side).build(rows)
    sizes = [read_image(ImageCache(tmp_path / "cache", side).image(stored(rows))).size for side in (16, SIDE)]
    assert sizes == [(24, 16), (48, 32)]


def test_unreadable_photos_are_reported_together(photos, cache):
    broken = [photos / f"broken{number}.jpg" for number in range(25)]
    for path in broken[1:]:
        path.write_bytes((photos / "wide.jpg").read_bytes()[:300])
    rows = rows_of(photos / "wide.jpg", *broken)
    with pytest.raises(ValueError, match="25 photos cannot be read") as error:
        cache.build(rows)
    shown = str(error.value)
    assert all(str(path) in shown for path in broken[:20])
    assert not any(str(path) in shown for path in broken[20:])
    assert len(files_of(cache)) == 1, "the readable ones are made nevertheless"


def test_a_folder_that_cannot_be_written_is_named(photos, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    cache = ImageCache(tmp_path / "cache", SIDE)
    with pytest.raises(ValueError, match=r"cannot write resized photos to .*cache.*data\.cache_dir"):
        cache.build(rows_of(photos / "wide.jpg", photos / "tall.png"))


def test_the_cache_pickles_for_loader_workers(photos, cache):
    rows = rows_of(photos / "wide.jpg")
    cache.build(rows)
    assert pickle.loads(pickle.dumps(cache)).image(stored(rows)) == cache.image(stored(rows))
