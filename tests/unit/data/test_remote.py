"""Tars behind fsspec: what is listed, what is read, and the bounded cache of it."""

import os
import threading
from pathlib import Path

import fsspec
import pytest

from clip_itm.data import remote
from clip_itm.data.configuration import WebDatasetData
from clip_itm.data.images import UnreadableImageError, image_bytes, read_image
from clip_itm.data.load import load_splits
from clip_itm.data.tar_members import tar_member
from support.tars import photo_bytes, write_shards


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """memory://bucket with three tars, and how many bytes were read of it."""
    memory = fsspec.filesystem("memory")
    for file in write_shards(tmp_path / "tars").iterdir():
        memory.pipe_file(f"/bucket/tars/{file.name}", file.read_bytes())
    for name in (remote.PLACE, remote.LIMIT):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(remote, "_written", 0)
    read = []
    plain = type(memory).cat_file

    def spy(self, path, start=None, end=None, **kwargs):
        read.append(end - start)
        return plain(self, path, start=start, end=end, **kwargs)

    monkeypatch.setattr(type(memory), "cat_file", spy)
    yield read
    memory.rm("/bucket", recursive=True)
    for name in (remote.PLACE, remote.LIMIT):
        os.environ.pop(name, None)


def data_of(root, tmp_path, **keys) -> WebDatasetData:
    return WebDatasetData(root=root, cache_dir=str(tmp_path / "cache"), **keys)


@pytest.mark.parametrize(
    "root", ["memory://bucket/tars", "memory://bucket/tars/*.tar", "memory://bucket/tars/{00000..00002}.tar"]
)
def test_the_rows_are_those_of_tars_here(bucket, tmp_path, root):
    there = load_splits(data_of(root, tmp_path))
    here = load_splits(data_of(str(tmp_path / "tars"), tmp_path))
    assert {name: split.sha256 for name, split in there.items()} == {name: split.sha256 for name, split in here.items()}
    row = there["train"].rows[3]
    assert row["image"]["path"].startswith("memory:///bucket/tars/00000.tar#")
    assert image_bytes(row["image"]) == photo_bytes(int(row["image_id"]))
    assert bucket == [len(photo_bytes(int(row["image_id"])))], "one range"


def cached_files(tmp_path) -> list[Path]:
    return [path for path in (tmp_path / "cache/remote").rglob("*") if path.is_file()]


def test_a_photo_is_fetched_once_while_it_is_kept_and_the_oldest_go(bucket, tmp_path):
    size = len(photo_bytes(0))
    limit = 10.5 * size
    splits = load_splits(data_of("memory://bucket/tars", tmp_path, remote_cache_gb=limit / 1e9))
    images = splits["train"].rows["image"][:]
    for image in images[:4] * 2:
        image_bytes(image)
    assert len(bucket) == 4
    for image in images[4:]:
        image_bytes(image)
        image_bytes(images[0])  # used all the time
        assert sum(path.stat().st_size for path in cached_files(tmp_path)) <= limit + size
    before = len(bucket)
    assert before == len(images), "the first was never fetched again"
    image_bytes(images[1])
    assert len(bucket) == before + 1


def test_a_damaged_entry_is_fetched_again_and_a_changed_tar_is_told(bucket, tmp_path):
    splits = load_splits(data_of("memory://bucket/tars", tmp_path))
    image = splits["train"].rows[0]["image"]
    image_bytes(image)
    (entry,) = cached_files(tmp_path)
    entry.write_bytes(b"damaged")
    assert image_bytes(image) == photo_bytes(int(splits["train"].rows[0]["image_id"]))
    entry.unlink()
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/bucket/tars/00000.tar", bytes(memory.size("/bucket/tars/00000.tar")))
    with pytest.raises(UnreadableImageError, match=r"memory:///bucket/tars/00000.tar has changed"):
        read_image(image)
    assert not cached_files(tmp_path), "what is not expected is not kept"
    memory.rm("/bucket/tars/00000.tar")
    with pytest.raises(UnreadableImageError, match="there is no such photo"):
        read_image(image)


def test_many_threads_and_a_clearing_at_the_same_time(bucket, tmp_path):
    size = len(photo_bytes(0))
    splits = load_splits(data_of("memory://bucket/tars", tmp_path, remote_cache_gb=5 * size / 1e9))
    rows, wrong = splits["train"].rows[:], []

    def read():
        for image, image_id in zip(rows["image"] * 3, rows["image_id"] * 3, strict=True):
            if image_bytes(image) != photo_bytes(int(image_id)):
                wrong.append(image_id)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_photos_are_decoded_before_training_only_where_they_lie_here():
    assert not WebDatasetData(root="s3://bucket/tars").reads_images
    assert WebDatasetData(root="s3://bucket/tars", check_photos=True).reads_images
    assert WebDatasetData(root="/data/tars").reads_images
    assert not WebDatasetData(root="/data/tars", check_photos=False).reads_images


def test_what_is_not_there_or_cannot_be_read_is_told(bucket, tmp_path):
    for root, told in (
        ("memory://bucket/nothing", "no .tar files there"),
        ("nonsense://bucket", "nonsense:// cannot be read here"),
    ):
        with pytest.raises(ValueError, match=told):
            load_splits(data_of(root, tmp_path))


def test_the_place_of_a_photo_is_read_back_from_its_name():
    path = "s3://bucket/a#b/00000.tar#1536+20480+6c0f1d2a9b3e4f50/x#1+2+6c0f1d2a9b3e4f50/y.jpg"
    assert tar_member(path).path == path
