"""Photos with a text beside each as a source."""

import pytest

from clip_itm.data.configuration import TextFilesData
from clip_itm.data.load import load_splits
from support.tars import photo_bytes


def write(root, name: str, number: int, text: str | None, suffix: str = ".txt"):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(photo_bytes(number))
    if text is not None:
        (path.parent / (path.name.rpartition(".")[0] + suffix)).write_text(text, encoding="utf-8")


def data_of(root, tmp_path, **keys) -> TextFilesData:
    return TextFilesData(root=str(root), cache_dir=str(tmp_path / "cache"), **keys)


def test_nested_folders_lines_and_suffixes(tmp_path):
    root = tmp_path / "photos"
    for number in range(20):
        write(root, f"{'ab'[number % 2]}/c/{number}.jpg", number, f"photo {number}\r\n\r\nagain {number}")
    write(root, "x.y.JPG", 30, "dots", ".TXT")
    write(root, "z.png", 31, "kept", ".caption")
    splits = load_splits(data_of(root, tmp_path))
    rows = {row["image_id"]: row for split in splits.values() for row in split.rows}
    assert len(rows) == 22
    assert rows["b/c/3.jpg"]["captions"] == ["photo 3", "again 3"]
    assert rows["b/c/3.jpg"]["caption_ids"] == ["b/c/3.txt:1", "b/c/3.txt:3"]
    assert rows["x.y.JPG"]["captions"] == ["dots"]
    assert rows["z.png"]["captions"] == ["kept"]
    before = splits["train"].sha256
    (root / "a/c/0.txt").write_text("another caption", encoding="utf-8")
    assert {name: split.sha256 for name, split in load_splits(data_of(root, tmp_path)).items()} != {
        name: split.sha256 for name, split in splits.items()
    }
    assert splits["train"].sha256 == before


def test_folders_of_splits(tmp_path):
    for number, folder in enumerate(("train", "validation", "test")):
        write(tmp_path / "p", f"{folder}/x/{number}.jpg", number, folder)
    splits = load_splits(data_of(tmp_path / "p", tmp_path))
    assert {name: split.pairs.captions.to_pylist() for name, split in splits.items()} == {
        "train": ["train"],
        "val": ["validation"],
        "test": ["test"],
    }
    write(tmp_path / "p", "more/9.jpg", 9, "more")
    with pytest.raises(ValueError, match=r"1 photo is in none of the folders train, val and test: more/9.jpg"):
        load_splits(data_of(tmp_path / "p", tmp_path))


def test_partners_that_are_missing_are_told(tmp_path):
    root = tmp_path / "p"
    for number in range(12):
        write(root, f"{number}.jpg", number, f"photo {number}")
    (root / "alone.txt").write_text("no photo")
    write(root, "silent.jpg", 50, None)
    write(root, "empty.jpg", 51, "")
    with pytest.raises(ValueError, match=r"photo without captions \((empty|silent).jpg"):
        load_splits(data_of(root, tmp_path))
    splits = load_splits(data_of(root, tmp_path, skip_missing=True))
    assert sum(len(split) for split in splits.values()) == 12
    assert "1 text without a photo left out: alone.txt" in splits["train"].rows.info.description
    write(root, "1.png", 60, None)
    with pytest.raises(ValueError, match=r"1.jpg and 1.png have one name, and so one text"):
        load_splits(data_of(root, tmp_path))


def test_a_folder_without_texts_and_a_text_of_other_bytes(tmp_path):
    write(tmp_path / "p", "a.jpg", 1, None)
    with pytest.raises(ValueError, match=r"no photo there has a text of its name beside it \(1 photo, 0 texts\)"):
        load_splits(data_of(tmp_path / "p", tmp_path))
    (tmp_path / "p/a.txt").write_bytes("ü".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.txt, line 1: byte 0xfc is not UTF-8"):
        load_splits(data_of(tmp_path / "p", tmp_path))
