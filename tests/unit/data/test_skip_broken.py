"""`data.skip_broken`: every source goes on without what cannot be read, and says what that was."""

import json
from pathlib import Path

import pytest

from clip_itm.data import class_folder, skipped
from clip_itm.data.class_folder import read_class_folder, without_broken
from clip_itm.data.configuration import FolderData, SampleData
from clip_itm.data.images import read_image
from clip_itm.data.load import BrokenImagesError, MissingImagesError, load_splits
from clip_itm.data.rows import Skipped
from clip_itm.recipe import parse_recipe
from clip_itm.runs.setup import load_data
from support.broken_data import BROKEN, COUNT, EMPTY, SOURCES, change, content, put
from support.photo_faults import PAGE


@pytest.fixture(params=SOURCES)
def broken_data(request, tmp_path):
    """A source whose training split has broken photos and empty captions."""
    for number in range(COUNT):
        put(tmp_path / f"{number}.jpg", BROKEN.get(number), number)
    put(tmp_path / "good.jpg", None, 99)
    data = SOURCES[request.param](tmp_path)
    return change(data, cache_dir=str(tmp_path / "cache"))


def test_every_source_goes_on_without_what_is_broken(broken_data, monkeypatch):
    splits = load_splits(change(broken_data, skip_broken=True))
    train = splits["train"]
    whole = [number for number in range(COUNT) if number not in BROKEN and number not in EMPTY]
    assert train.pairs.captions.to_pylist() == [f"photo {number}" for number in whole]
    assert [read_image(row["image"]).getpixel((9, 9)) for row in train.rows] == [
        read_image({"path": "", "bytes": content(number)}).getpixel((9, 9)) for number in whole
    ]
    broken = [(item, reason) for item, kind, reason in train.skipped if kind == "broken"]
    assert len(broken) == len(BROKEN)
    assert sum("not a photo" in reason for _, reason in broken) == 1
    assert sum("truncated" in reason for _, reason in broken) == 2
    assert train.skipped_counts["broken"] == len(BROKEN)
    assert train.skipped_counts["missing"] == 0
    assert train.skipped_counts["empty_captions"] >= len(EMPTY)
    assert splits["val"].skipped == ()
    with monkeypatch.context() as context:  # the second time, without decoding what could be read
        decoded = []
        context.setattr(
            "clip_itm.data.image_check.read_image", lambda image, **_: decoded.append(image) or read_image(image)
        )
        again = load_splits(change(broken_data, skip_broken=True), verify=False)["train"]
        assert len(decoded) == 3
    assert (again.sha256, again.skipped) == (train.sha256, train.skipped)
    resized = load_splits(change(broken_data, skip_broken=True, cache_images=16))["train"]
    assert (resized.sha256, resized.skipped) == (train.sha256, train.skipped)


def test_a_photo_that_is_missing_is_no_broken_one(broken_data):
    if broken_data.source == "hub":
        return
    (Path(broken_data.root) / "9.jpg").unlink()
    with pytest.raises(MissingImagesError, match=r"(?s)1 of .* photos are missing or empty:.*9\.jpg\n"):
        load_splits(change(broken_data, skip_broken=True))
    train = load_splits(change(broken_data, skip_broken=True, skip_missing=True))["train"]
    assert train.skipped_counts["missing"] == 4  # with the empty file, the folder and the pipe, as ever
    assert train.skipped_counts["broken"] == 3


@pytest.fixture
def data(tmp_path) -> FolderData:
    """12 photos in train, 3 in val and 3 in test, in a folder with captions.csv."""
    lines = ["image,caption,split"]
    for number in range(18):
        put(tmp_path / f"{number}.jpg", None, number)
        lines.append(f"{number}.jpg,photo {number},{('train', 'train', 'train', 'train', 'val', 'test')[number % 6]}")
    (tmp_path / "captions.csv").write_text("\n".join(lines) + "\n")
    return FolderData(root=str(tmp_path), cache_dir=str(tmp_path / "cache"))


def destroy(data: FolderData, *numbers: int, fault: str = "page") -> None:
    for number in numbers:
        path = Path(data.root) / f"{number}.jpg"
        path.unlink()
        put(path, fault, number)


def test_missing_and_broken_photos_are_told_together(data):
    destroy(data, 0, 4)
    (Path(data.root) / "1.jpg").write_bytes(b"")
    (Path(data.root) / "5.jpg").unlink()
    with pytest.raises(MissingImagesError) as caught:
        load_splits(data)
    assert [Path(photo.split()[1]).name for photo in caught.value.images] == ["1.jpg", "5.jpg"]
    assert [sentence.partition(".jpg")[0].rpartition("/")[2] for sentence in caught.value.broken] == ["0", "4"]
    assert "data.skip_missing" in str(caught.value)
    assert "data.skip_broken" in str(caught.value)


def test_a_folder_that_is_wrong_is_told_without_decoding_what_is_there(data, monkeypatch):
    for number in range(1, 18):
        (Path(data.root) / f"{number}.jpg").unlink()
    monkeypatch.setattr("clip_itm.data.image_check.read_image", lambda *_, **__: pytest.fail("it was decoded"))
    with pytest.raises(MissingImagesError, match="17 of 18 photos"):
        load_splits(data)


def test_the_hash_is_of_what_is_left(data):
    whole = load_splits(data)["train"]
    destroy(data, 2, 17)
    splits = load_splits(change(data, skip_broken=True))
    table = Path(data.root) / "captions.csv"
    expected = load_splits(data, verify=False)["train"]
    expected = expected.select([row for row, id in enumerate(expected.rows["image_id"]) if id != "2.jpg"])
    assert splits["train"].sha256 == expected.sha256 != whole.sha256
    assert [out.item for out in splits["test"].skipped] == [f"{data.root}/17.jpg"]
    assert table.is_file()
    destroy(data, 2, 17, fault="whole")
    assert load_splits(change(data, skip_broken=True))["train"].sha256 == whole.sha256


def test_nothing_left_of_a_split_says_why(data):
    destroy(data, 4, 10, 16, fault="cut")
    with pytest.raises(ValueError, match=r"split val is empty; 3 photos cannot be read: .*4\.jpg \(.*truncated"):
        load_splits(change(data, skip_broken=True))
    destroy(data, 4, fault="empty")
    message = r"split val is empty; 1 photo is missing: .*4\.jpg; 2 photos cannot be read: .*10\.jpg \("
    with pytest.raises(ValueError, match=message):
        load_splits(change(data, skip_broken=True, skip_missing=True))
    destroy(data, *range(18))
    with pytest.raises(
        ValueError, match=r"split train is empty; 12 photos cannot be read: (?s:.*)\nsplit val is empty"
    ):
        load_splits(change(data, skip_broken=True))


def test_max_photos_looks_at_no_more_photos_than_it_needs(data, monkeypatch):
    destroy(data, 0, 2)
    decoded = []
    monkeypatch.setattr(
        "clip_itm.data.image_check.read_image", lambda image, **_: decoded.append(image["path"]) or read_image(image)
    )
    splits = load_splits(change(data, skip_broken=True, max_images=3))
    assert splits["train"].rows["image_id"][:] == ["1.jpg", "3.jpg", "6.jpg"]
    assert sum(Path(path).stem in ("0", "1", "2", "3", "6") for path in decoded) == 5
    assert len(decoded) == 5 + 3 + 3


def test_drawn_scenes_are_not_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(skipped, "find_unreadable", None)
    sample = SampleData(train_images=4, val_images=2, test_images=2, image_size=32, cache_dir=str(tmp_path))
    assert len(load_splits(change(sample, skip_broken=True))["train"]) == 4


def test_class_folders(tmp_path, data):
    for number, name in enumerate(("cat/a.jpg", "cat/b.png", "dog/c.jpg", "dog/d.jpg")):
        put(tmp_path / "classes" / name, None, number)
    classes = read_class_folder(tmp_path / "classes")
    assert without_broken(classes, data) is classes
    (tmp_path / "classes" / "cat" / "b.png").write_bytes(PAGE)
    (tmp_path / "classes" / "dog" / "d.jpg").write_bytes(b"")
    with pytest.raises(BrokenImagesError, match=r"(?s)2 of 4 photos cannot be read:.*cat/b\.png: .*dog/d\.jpg: "):
        without_broken(classes, data)
    rest = without_broken(classes, change(data, skip_broken=True))
    assert ([Path(row["image"]["path"]).name for row in rest.rows], rest.labels) == (["a.jpg", "c.jpg"], [0, 1])
    assert [Path(out.item).name for out in rest.skipped] == ["b.png", "d.jpg"]
    (tmp_path / "classes" / "dog" / "c.jpg").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"no photo of dog can be read: "):
        without_broken(classes, change(data, skip_broken=True))
    assert class_folder.Skipped is Skipped


def test_rows_without_a_photo_or_with_half_a_character_are_all_told_or_left_out(data, tmp_path):
    lines = [
        json.dumps({"image": f"{n}.jpg", "caption": f"photo {n}", "split": "val" if n % 6 == 4 else "train"})
        for n in range(18)
    ]
    lines[2] = '{"image": null, "caption": "a dog", "split": "train"}'
    lines[3] = '{"caption": "a cat", "split": "train"}'
    lines[4] = '{"image": "4.jpg", "caption": "half \\ud83d", "split": "val"}'
    lines[5] = '{"image": "5.jpg", "caption": null, "split": "train"}'
    (tmp_path / "captions.jsonl").write_text("\n".join(lines) + "\n")
    data = change(data, captions="captions.jsonl")
    message = (
        r"3 rows cannot be used:\n  captions\.jsonl:3: column 'image' names no photo\n  captions\.jsonl:4: .*no photo\n"
        r"  captions\.jsonl:5, .*half of a character(?s:.*)set data\.skip_broken: true to go on without"
    )
    with pytest.raises(ValueError, match=message):
        load_splits(data)
    splits = load_splits(change(data, skip_broken=True))
    assert {name: len(split) for name, split in splits.items()} == {"train": 12, "val": 2}
    assert [tuple(out) for out in splits["train"].skipped] == [
        ("photo captions.jsonl:3", "broken", "null"),
        ("photo captions.jsonl:4", "broken", "null"),
        ("captions.jsonl:6", "caption", "empty caption"),
    ]
    assert [tuple(out) for out in splits["val"].skipped] == [("captions.jsonl:5", "caption", "empty caption")]


def test_processes_that_find_other_photos_are_told(data, monkeypatch):
    monkeypatch.setattr("clip_itm.runs.setup.is_same_everywhere", lambda *_: False)
    with pytest.raises(ValueError, match=r"process 0: train [0-9a-f]{12}, val .*all need the same folders"):
        load_data(parse_recipe({"data": data.model_dump(), "backbone": {"kind": "open_clip"}, "output_dir": "x"}, "r"))
