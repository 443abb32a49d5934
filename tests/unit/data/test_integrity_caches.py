"""Caches that are damaged, in the way of somebody's file, written twice at once, or on a full disk."""

import errno
import os
import shutil
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_itm.cli import main
from clip_itm.data.arrays import cached_array, new_array
from clip_itm.data.image_cache import ImageCache
from clip_itm.data.images import read_image
from clip_itm.data.load import load_splits
from clip_itm.files import DamagedError, is_temporary
from clip_itm.runs.setup import load_data, make_encoder, make_model
from clip_itm.seal import LENGTH
from clip_itm.verify import verify
from support.damage import DAMAGES, KILLS, flip, in_child, kill_at, seconds_of, status_of
from support.tiny import tiny_recipe

pytestmark = pytest.mark.slow

KINDS = {  # of files in a cache folder, by pattern
    "photo features": "features/photos-*.npy",
    "caption features": "features/captions-*.npy",
    "resized photos": "photos/*/??/*",
    "rows": "rows/**/*.arrow",
    "what rows are": "rows/**/dataset_info.json",
    "checksums of rows": "rows/**/checksums.json",
}


def frozen(folder: Path):
    """A recipe whose towers are frozen and whose photos are resized: all caches are in use."""
    return tiny_recipe(
        folder,
        data={"cache_images": 24, "num_workers": 0},
        backbone={"freeze_image": True, "freeze_text": True},
    )


def embeddings(recipe) -> np.ndarray:
    """Of photos and captions of dev: whatever a cache gives wrongly shows in them."""
    data = load_data(recipe)
    encoded = make_encoder(recipe, *make_model(recipe, data.splits), data.image_cache).encode(data.val)
    return np.concatenate([encoded.images.numpy(), encoded.texts.numpy()])


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("filled")
    return folder, embeddings(frozen(folder))


def copy_of(filled: Path, folder: Path):
    """The same recipe with a copy of the cache."""
    shutil.copytree(filled / "cache", folder / "cache")
    return frozen(filled).with_overrides("--data.cache_dir", str(folder / "cache"))


def victim(cache: Path, kind: str) -> Path:
    return next(path for path in sorted(cache.glob(KINDS[kind])) if path.is_file())


def quietly(do, *arguments):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = do(*arguments)
    return found, "\n".join(str(warning.message) for warning in told)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_caches_are_found_told_and_made_anew(tmp_path, filled, kind, damage):
    recipe = copy_of(filled[0], tmp_path)
    if kind == "resized photos":  # else the features are used, and no photo is read
        shutil.rmtree(tmp_path / "cache" / "features")
        cache = ImageCache(tmp_path / "cache" / "photos", 24)
        for row in load_splits(recipe.data)["val"].rows:
            DAMAGES[damage](cache._entry(row["image"]))
    bad = victim(tmp_path / "cache", kind)
    if kind != "resized photos":
        DAMAGES[damage](bad)
    assert main(["verify", str(tmp_path / "cache")]) == 1
    found, told = quietly(embeddings, recipe)
    np.testing.assert_array_equal(found, filled[1])
    assert kind in ("resized photos", "what rows are") or str(bad.parent) in told
    assert "again" in told or (kind, damage) == ("resized photos", "empty")  # made without a word before they are read
    assert main(["verify", str(tmp_path / "cache")]) == 0
    assert quietly(embeddings, recipe)[1] == ""


def test_verify_says_what_a_cache_holds(filled, capsys):
    assert main(["verify", str(filled[0] / "cache")]) == 0
    said = capsys.readouterr().out
    assert "no damage found" in said
    assert "features" in said
    assert "photos/24" in said


@settings(max_examples=60, deadline=None)
@given(data=st.data(), tokens=st.booleans())
def test_no_change_of_a_kept_array_is_silent(tmp_path_factory, data, tokens):
    path = tmp_path_factory.mktemp("array") / "photos.npy"
    values = np.arange(24, dtype=np.float32).reshape(6, 4)
    with new_array(path, np.float16 if tokens else np.float32, values.shape, "") as array:
        array[:] = values
    whole = path.read_bytes()
    np.testing.assert_array_equal(cached_array(path, 6), values)
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))
    flipped = bytearray(whole)
    flipped[bit // 8] ^= 1 << bit % 8
    path.write_bytes(flipped)
    with pytest.raises((DamagedError, ValueError), match=r"photos\.npy"):
        cached_array(path, 6)
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - LENGTH - 1))])
    with pytest.raises(DamagedError):
        cached_array(path, 6)
    path.write_bytes(whole + b"more")
    with pytest.raises(DamagedError):
        cached_array(path, 6)
    path.write_bytes(whole)
    with pytest.raises(DamagedError):
        cached_array(path, 7)


def test_kept_features_of_an_earlier_version_have_no_checksum_and_are_read(tmp_path):
    np.save(tmp_path / "photos.npy", np.eye(4))
    np.testing.assert_array_equal(cached_array(tmp_path / "photos.npy", 4), np.eye(4))
    np.savez_compressed(tmp_path / "noise.npz", a=np.eye(2))
    (tmp_path / "provenance.json").write_text("{}")
    assert main(["verify", str(tmp_path)]) == 0


def test_resized_photos_of_an_earlier_version_have_no_checksum_and_are_read(tmp_path, filled):
    recipe = copy_of(filled[0], tmp_path)
    shutil.rmtree(tmp_path / "cache" / "features")
    for path in (tmp_path / "cache").glob(KINDS["resized photos"]):
        path.write_bytes(path.read_bytes()[:-LENGTH])
    found, told = quietly(embeddings, recipe)
    np.testing.assert_array_equal(found, filled[1])
    assert told == ""


def test_somebody_elses_file_in_the_way_of_features_stays(tmp_path, filled):
    recipe = copy_of(filled[0], tmp_path)
    path = victim(tmp_path / "cache", "photo features")
    path.write_text("my notes")
    with pytest.raises(ValueError, match=r"photos-.*\.npy is no array of NumPy.*data\.cache_dir"):
        embeddings(recipe)
    assert path.read_text() == "my notes"


def test_a_damaged_resized_photo_whose_cache_cannot_be_written_is_still_the_right_one(tmp_path, filled, monkeypatch):
    recipe = copy_of(filled[0], tmp_path)
    row = load_splits(recipe.data)["val"].rows[0]["image"]
    cache = ImageCache(tmp_path / "cache" / "photos", 24)
    right = np.asarray(read_image(cache.image(row)))
    flip(cache._entry(row))

    def refused(self, entry, content):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(ImageCache, "_write", refused)
    with pytest.warns(UserWarning, match="damaged; it is made again"):
        image = cache.image(row)
    np.testing.assert_array_equal(np.asarray(read_image(image)), right)


# Full disks


def test_features_that_do_not_fit_on_the_disk_are_told_before_they_are_written(tmp_path, filled, monkeypatch):
    recipe = copy_of(filled[0], tmp_path)
    shutil.rmtree(tmp_path / "cache" / "features")

    def full(descriptor, start, size):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ValueError, match=r"photos-.*npy cannot be written \(No space.*needs .* bytes.*cache_dir"):
        embeddings(recipe)
    assert not list((tmp_path / "cache" / "features").iterdir())


def test_where_the_system_cannot_reserve_the_free_room_is_looked_at(tmp_path, monkeypatch):
    def unsupported(descriptor, start, size):
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    with new_array(tmp_path / "a.npy", np.float32, (3, 2), "") as array:
        array[:] = 1
    assert cached_array(tmp_path / "a.npy", 3).sum() == 6
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 5, 5))
    with (
        pytest.raises(ValueError, match="needs 24 bytes, and 5 are free"),
        new_array(tmp_path / "b.npy", np.float32, (3, 2), ""),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_ends_with_a_sentence_and_not_with_a_signal(small_disk):
    with (
        pytest.raises(ValueError, match="needs 2,097,152 bytes"),
        new_array(small_disk / "a.npy", np.float32, (512, 1024), "make room") as array,
    ):
        array[:] = 1
    assert not list(small_disk.iterdir())
    with new_array(small_disk / "a.npy", np.float32, (128, 1024), "make room") as array:
        array[:] = 1
    assert cached_array(small_disk / "a.npy", 128).sum() == 128 * 1024


# Several writers, and killed ones


@pytest.mark.slow
def test_two_processes_fill_the_same_caches_and_killed_ones_leave_nothing_behind(tmp_path, filled):
    recipe = frozen(filled[0]).with_overrides("--data.cache_dir", str(tmp_path / "cache"))

    def work() -> None:
        embeddings(recipe)

    seconds, draw = seconds_of(work), np.random.default_rng(0)
    for _ in range(KILLS):
        shutil.rmtree(tmp_path / "cache")
        kill_at(float(draw.uniform(0, seconds)), work)
        assert not (tmp_path / "cache").exists() or not said_of(tmp_path / "cache")
        assert [status_of(pid) for pid in [in_child(work) for _ in range(2)]] == [0, 0]
        assert not said_of(tmp_path / "cache")
        found, told = quietly(embeddings, recipe)
        np.testing.assert_array_equal(found, filled[1])
        assert told == ""
        ours = [*(tmp_path / "cache" / "features").iterdir(), *(tmp_path / "cache" / "photos").rglob("*")]
        assert not [path for path in ours if is_temporary(path)]


def said_of(cache: Path) -> list[str]:
    try:
        return [damage for part in verify(cache) for damage in part.damages]
    except ValueError:  # nothing is in it yet
        return []
