"""Every photo that training could not read is found before it, once, and nothing hangs."""

import os
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clip_itm.data import image_check
from clip_itm.data.image_cache import ImageCache
from clip_itm.data.image_check import ReadImages, find_unreadable
from clip_itm.data.images import UnreadableImageError, read_image
from clip_itm.data.rows import ROW_FEATURES
from clip_itm.data.skipped import find_absent
from support.photo_faults import FAULTS, FORMATS, PAGE, damaged, encoded, picture


def rows_of(*images: str | Path | bytes | None) -> Dataset:
    def stored(image):
        if image is None:
            return None
        return {"path": None, "bytes": image} if isinstance(image, bytes) else {"path": str(image), "bytes": None}

    columns = {
        "image": [stored(image) for image in images],
        "image_id": [f"id {number}" for number in range(len(images))],
        "captions": [["a"]] * len(images),
        "caption_ids": [["0"]] * len(images),
    }
    return Dataset.from_dict(columns, features=ROW_FEATURES)


def error_of(read) -> str | None:
    try:
        read()
    except ValueError as error:
        return str(error)
    return None


@settings(max_examples=250, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(sorted(FORMATS)),
    st.sampled_from(FAULTS),
    st.integers(1, 130),
    st.integers(1, 130),
    st.integers(0, 2**32),
)
def test_the_check_finds_what_the_decoder_of_training_raises(tmp_path_factory, kind, fault, width, height, seed):
    data = damaged(FORMATS[kind](picture(width, height, seed)), fault, seed)
    folder = tmp_path_factory.getbasetemp()
    training = error_of(lambda: read_image({"path": "a.jpg", "bytes": data}))
    assert error_of(lambda: read_image({"path": "a.jpg", "bytes": data}, draft_size=1)) == training
    for side in (1, 16, 500):  # shrunk, and left as it is
        resized = ImageCache(folder / "resized", side).failures([{"path": "a.jpg", "bytes": data}])
        assert resized == [training]
    if fault == "whole":
        assert training is None


@pytest.fixture
def photos(tmp_path) -> list[Path]:
    paths = [tmp_path / "photos" / f"{number}.jpg" for number in range(5)]
    paths[0].parent.mkdir()
    for number, path in enumerate(paths):
        path.write_bytes(encoded(picture(40, 30, number), "JPEG"))
    return paths


def test_what_is_no_file_is_found_and_nothing_waits_for_it(photos):
    for path in photos[:4]:
        path.unlink()
    os.mkfifo(photos[0])
    photos[1].mkdir()
    photos[2].symlink_to("/dev/zero")
    photos[3].symlink_to(photos[3])
    rows = rows_of(*photos, None, b"")
    assert [(photo.row, photo.reason) for photo in find_absent(rows)] == [
        (0, "no regular file"),
        (1, "a folder"),
        (2, "no regular file"),
        (3, "a link to nowhere"),
        (5, "null"),
        (6, "0 bytes"),
    ]
    assert str(find_absent(rows)[4]) == "photo id 5 (null)"
    for number, message in ((0, "no regular file"), (1, "a directory"), (2, "no regular file"), (3, "symbolic links")):
        with pytest.raises(UnreadableImageError, match=message):
            read_image(rows[number]["image"])


def test_a_file_that_may_not_be_read(photos, tmp_path, monkeypatch):
    def opener(path, flags):
        if path == str(photos[1]):
            raise PermissionError(13, "Permission denied")
        return os.open(path, flags)

    monkeypatch.setattr("clip_itm.data.images._without_waiting", opener)
    assert find_unreadable(rows_of(*photos), ReadImages(tmp_path / "read")) == {
        1: f"{photos[1]}: the file cannot be opened (Permission denied)"
    }


@pytest.mark.parametrize("checker", [ReadImages, lambda folder: ImageCache(folder, 16)])
def test_too_many_open_files_are_no_broken_photos(photos, tmp_path, monkeypatch, checker):
    def opener(path, flags):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("clip_itm.data.images._without_waiting", opener)
    with pytest.raises(ValueError, match=r"0\.jpg: this machine could not read it \(.*Too many open files"):
        find_unreadable(rows_of(*photos), checker(tmp_path / "read"), workers=1)


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """The photos that are decoded, as they are."""
    paths = []

    def reading(image, draft_size=None):
        paths.append(image["path"])
        return read_image(image, draft_size)

    monkeypatch.setattr(image_check, "read_image", reading)
    return paths


def test_a_photo_is_decoded_once_and_again_when_it_changes(photos, tmp_path, decoded):
    rows = rows_of(*photos, photos[0].read_bytes())
    assert find_unreadable(rows, ReadImages(tmp_path / "read")) == {}
    assert sorted(decoded) == [*map(str, photos), "photo id 5"]
    decoded.clear()
    assert find_unreadable(rows, ReadImages(tmp_path / "read")) == {}
    assert decoded == []

    photos[3].write_bytes(photos[3].read_bytes()[:-90])
    broken = find_unreadable(rows, ReadImages(tmp_path / "read"))
    assert list(broken) == [3]
    assert broken[3].startswith(f"{photos[3]}: the photo cannot be decoded (image file is truncated")
    assert decoded == [str(photos[3])]
    find_unreadable(rows, ReadImages(tmp_path / "read"))
    assert decoded == [str(photos[3])] * 2  # a broken photo is looked at every time: it may be the disk

    photos[3].write_bytes(photos[2].read_bytes())
    os.utime(photos[1])
    decoded.clear()
    assert find_unreadable(rows, ReadImages(tmp_path / "read")) == {}
    assert sorted(decoded) == [str(photos[1]), str(photos[3])]


def test_what_was_kept_under_another_version_of_pillow_is_not_believed(photos, tmp_path, decoded, monkeypatch):
    find_unreadable(rows_of(*photos), ReadImages(tmp_path / "read"))
    monkeypatch.setattr(image_check.PIL, "__version__", "99.0")
    find_unreadable(rows_of(*photos), ReadImages(tmp_path / "read"))
    assert len(decoded) == 2 * len(photos)


@pytest.mark.parametrize("damage", [lambda data: data[:-20], lambda data: b"\0" * 50 + data, lambda data: b"x\n" * 9])
def test_a_damaged_list_only_means_that_photos_are_decoded_again(photos, tmp_path, decoded, damage):
    read = ReadImages(tmp_path / "read")
    find_unreadable(rows_of(*photos), read)
    read.file.write_bytes(damage(read.file.read_bytes()))
    photos[4].write_bytes(PAGE)
    for _ in range(2):  # what is appended to half a line is lost, too, and written again
        assert list(find_unreadable(rows_of(*photos), ReadImages(tmp_path / "read"))) == [4]
    decoded.clear()
    find_unreadable(rows_of(*photos), ReadImages(tmp_path / "read"))
    assert decoded == [str(photos[4])]


def test_a_list_that_cannot_be_written_costs_time_only(photos, tmp_path):
    (tmp_path / "read").write_text("a file in place of the folder")
    assert find_unreadable(rows_of(*photos), ReadImages(tmp_path / "read")) == {}


def test_an_interrupted_check_goes_on_where_it_stopped(photos, tmp_path, decoded, monkeypatch):
    monkeypatch.setattr(image_check, "BLOCK", 1)

    def interrupted(image, draft_size=None):
        if image["path"] == str(photos[2]):
            raise KeyboardInterrupt
        return read_image(image, draft_size)

    with monkeypatch.context() as context:
        context.setattr(image_check, "read_image", interrupted)
        with pytest.raises(KeyboardInterrupt):
            find_unreadable(rows_of(*photos), ReadImages(tmp_path / "read"), workers=1)
    find_unreadable(rows_of(*photos), ReadImages(tmp_path / "read"))
    assert str(photos[0]) not in decoded
    assert str(photos[2]) in decoded


def test_broken_photos_among_many_are_found_in_order(tmp_path):
    good = encoded(picture(9, 9, 0), "PNG")
    generator = np.random.default_rng(0)
    broken = sorted(generator.choice(500, 40, replace=False).tolist())
    rows = rows_of(*(good[: 60 + number % 7] if number in broken else good for number in range(500)))
    found = find_unreadable(rows, ReadImages(tmp_path / "read"), workers=3)
    assert list(found) == broken
    assert all(sentence.startswith(f"photo id {number}: ") for number, sentence in found.items())


def test_the_cache_of_resized_photos_decodes_them_already(photos, tmp_path, decoded):
    cache = ImageCache(tmp_path / "resized", 16)
    photos[1].write_bytes(PAGE)
    assert list(find_unreadable(rows_of(*photos), cache)) == [1]
    assert decoded == []
    assert [cache.is_ready(row["image"]) for row in rows_of(*photos)] == [True, False, True, True, True]
