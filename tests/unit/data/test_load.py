"""What is verified before training: missing photos all at once, empty captions, ids that occur twice."""

import logging
import os
from pathlib import Path

import pytest
from datasets import Dataset
from PIL import Image

from clip_itm.data.configuration import CocoData, FlickrData, FolderData, SampleData
from clip_itm.data.load import MissingImagesError, load_splits
from clip_itm.data.rows import ROW_FEATURES
from clip_itm.data.skipped import find_absent


@pytest.fixture
def data(tmp_path) -> FolderData:
    """30 photos with two captions each; val_fraction 0, so that all are in train."""
    lines = ["image,caption_a,caption_b"]
    for number in range(30):
        path = tmp_path / f"part{number % 2}" / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.new("L", (4, 4), number).save(path)
        lines.append(f"part{number % 2}/{number}.jpg,first of {number},second of {number}")
    (tmp_path / "captions.csv").write_text("\n".join(lines) + "\n")
    return FolderData(root=str(tmp_path), cache_dir=str(tmp_path / "cache"), val_fraction=0, test_fraction=0)


def change(data, **values):
    return type(data).model_validate(data.model_dump() | values)


def photo(data: FolderData, number: int) -> Path:
    return Path(data.root) / f"part{number % 2}" / f"{number}.jpg"


def edit(data: FolderData, old: str, new: str) -> None:
    table = Path(data.root) / "captions.csv"
    text = table.read_text()
    assert old in text
    table.write_text(text.replace(old, new))


def test_all_missing_photos_are_reported_together(data):
    for number in range(25):
        photo(data, number).unlink()
    photo(data, 27).write_bytes(b"")
    with pytest.raises(MissingImagesError) as caught:
        load_splits(data)
    error = caught.value
    assert error.images == [f"train: {photo(data, n)}" for n in range(25)] + [f"train: {photo(data, 27)} (0 bytes)"]
    text = str(error)
    assert text.startswith("26 of 30 photos are missing or empty:\n")
    assert text.count(".jpg") == 20
    assert "... and 6 more" in text
    assert "data.skip_missing: true" in text


def test_skip_missing_goes_on_with_the_others(data, caplog):
    photo(data, 3).unlink()
    photo(data, 8).write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        train = load_splits(change(data, skip_missing=True))["train"]
    assert train.missing == (str(photo(data, 3)), str(photo(data, 8)))
    assert len(train) == 28
    assert train.rows["image_id"][3] == "part0/4.jpg"
    assert train.pairs.captions[6].as_py() == "first of 4"
    assert "2 of 30 photos are missing or empty and left out" in caplog.text
    whole = load_splits(change(data, skip_missing=True), verify=False)["train"]
    assert whole.sha256 == train.sha256


def test_max_photos_counts_photos_that_are_there(data):
    photo(data, 0).unlink()
    photo(data, 20).unlink()
    with pytest.raises(MissingImagesError, match="1 of 10 photos are missing"):
        load_splits(change(data, max_images=10))
    train = load_splits(change(data, max_images=10, skip_missing=True))["train"]
    assert [int(Path(i).stem) for i in train.rows["image_id"]] == list(range(1, 11))
    assert len(load_splits(change(data, max_images=1000, skip_missing=True))["train"]) == 28


def test_nothing_left(data):
    for number in range(30):
        photo(data, number).unlink()
    with pytest.raises(ValueError, match="split train is empty; 30 photos are missing"):
        load_splits(change(data, skip_missing=True))


def test_a_folder_or_nothing_in_place_of_a_photo(data, tmp_path):
    photo(data, 4).unlink()
    photo(data, 4).mkdir()
    for number in range(1, 30, 2):
        photo(data, number).unlink()
    (tmp_path / "part1").rmdir()
    rows = load_splits(data, verify=False)["train"].rows
    assert [photo.row for photo in find_absent(rows)] == sorted([4, *range(1, 30, 2)])


def test_find_absent_agrees_with_the_file_system(data):
    for number in (2, 9, 11):
        photo(data, number).unlink()
    for number in (0, 29):
        photo(data, number).write_bytes(b"")
    rows = load_splits(data, verify=False)["train"].rows
    slow = [
        (row, path, "0 bytes" if os.path.exists(path) else "")
        for row, path in enumerate(image["path"] for image in rows["image"])
        if not os.path.isfile(path) or os.path.getsize(path) == 0
    ]
    assert [tuple(photo) for photo in find_absent(rows)] == slow


def test_stored_bytes_are_photos_too():
    images = [{"path": None, "bytes": b"x"}, {"path": "named.png", "bytes": b""}, {"path": None, "bytes": b"y"}]
    columns = {"image": images, "image_id": list("abc"), "captions": [["x"]] * 3, "caption_ids": [["x"]] * 3}
    assert [str(photo) for photo in find_absent(Dataset.from_dict(columns, features=ROW_FEATURES))] == [
        "named.png (0 bytes)"
    ]


def test_empty_captions(data):
    edit(data, "first of 4,", "  ,")
    edit(data, "first of 7,second of 7", "[],")
    edit(data, ",first of 9,second of 9", ",,")
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the whole message is compared)
        load_splits(data)
    assert str(caught.value).splitlines() == [
        "split train: 1 empty caption (captions.csv:6:caption_a); write or remove them, or set data.skip_missing: true",
        "split train: 2 photos without captions (part1/7.jpg, part1/9.jpg); "
        "write or remove them, or set data.skip_missing: true",
    ]
    train = load_splits(change(data, skip_missing=True))["train"]
    captions = dict(zip(train.rows["image_id"], train.rows["captions"], strict=True))
    assert len(captions) == 28
    assert captions["part0/4.jpg"] == ["second of 4"]
    assert train.rows[4]["caption_ids"] == ["captions.csv:6:caption_b"]
    assert train.rows.info.description == "train: 1 empty caption and 2 photos without captions are left out"
    assert train.missing == ()


def test_photo_ids_that_occur_twice(tmp_path):
    folder = tmp_path / "annotations" / "scan_split"
    folder.mkdir(parents=True)
    (folder / "train_ids.txt").write_text("1\n2\n1\n3\n")
    (folder / "train_caps.txt").write_text("a\nb\nc\nd\n")
    coco = CocoData(root=str(tmp_path), cache_dir=str(tmp_path / "cache"), skip_missing=True)
    message = r"1 photo ids occur more than once \(1\); all captions of a photo belong together"
    (tmp_path / "images").mkdir()
    for number in (1, 2, 3):
        (tmp_path / "images" / f"COCO_2014_{number:012d}.jpg").write_bytes(b"x")
    with pytest.raises(ValueError, match=message):
        load_splits(coco)
    assert len(load_splits(coco, verify=False)["train"]) == 4


def test_a_photo_in_two_splits(data, tmp_path):
    (tmp_path / "t.csv").write_text("image,caption\npart0/0.jpg,x\npart0/2.jpg,x\n")
    (tmp_path / "v.csv").write_text("image,caption\npart0/2.jpg,y\n")
    with pytest.raises(ValueError, match=r"1 photo of split val is in split train too \(part0/2.jpg\)"):
        load_splits(change(data, split_files={"train": "t.csv", "val": "v.csv"}))


def test_an_empty_split(data, tmp_path):
    (tmp_path / "t.csv").write_text("image,caption\npart0/0.jpg,x\n")
    (tmp_path / "v.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"v.jsonl: the file is empty"):
        load_splits(change(data, split_files={"train": "t.csv", "val": "v.jsonl"}))


def test_sample_has_three_splits(tmp_path):
    sample = SampleData(train_images=6, val_images=3, test_images=2, image_size=32, cache_dir=str(tmp_path))
    splits = load_splits(sample)
    assert {name: (len(split), len(split.pairs)) for name, split in splits.items()} == {
        "train": (6, 30),
        "val": (3, 15),
        "test": (2, 10),
    }


FLICKR8K_PHOTOS = {"train": 6000, "val": 1000, "test": 1000}


@pytest.mark.real_data
@pytest.mark.parametrize("annotations", ["dataset_flickr8k.json", "Flickr8k.token.txt", "captions.txt"])
def test_flickr8k(real_data, tmp_path, annotations):
    data = FlickrData(root=str(real_data / "flickr8k"), annotations=annotations, cache_dir=str(tmp_path))
    splits = load_splits(data)
    assert {name: len(split) for name, split in splits.items()} == FLICKR8K_PHOTOS
    assert all(len(split.pairs) == 5 * len(split) for split in splits.values())
    first = splits["train"].rows[0]
    assert first["image_id"] == "2513260012_03d33305cf.jpg"
    assert first["captions"][0] == "A black dog is running after a white dog in the snow ."
    notes = splits["train"].rows.info.description
    if annotations == "Flickr8k.token.txt":
        assert "5 captions of 1 photo that is not there: 2258277193_586949ec62.jpg.1" in notes
    assert ("91 photos are in no split file" in notes) == (annotations != "dataset_flickr8k.json")


@pytest.mark.real_data
def test_flickr8k_layouts_agree_on_the_photos_of_every_split(real_data, tmp_path):
    karpathy, token = (
        load_splits(FlickrData(root=str(real_data / "flickr8k"), layout=layout, cache_dir=str(tmp_path)))
        for layout in ("karpathy", "token")
    )
    for name in FLICKR8K_PHOTOS:
        assert set(karpathy[name].rows["image_id"]) == set(token[name].rows["image_id"])


@pytest.mark.real_data
def test_coco_mini(real_data, tmp_path):
    splits = load_splits(CocoData(root=str(real_data / "coco_mini"), cache_dir=str(tmp_path)))
    assert {name: (len(split), len(split.pairs)) for name, split in splits.items()} == {
        "train": (80, 400),
        "val": (159, 795),
    }
