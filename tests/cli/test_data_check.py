"""`clip-itm data check`: everything that can be wrong is found, named, and decides about the exit status."""

import io
import json
import shutil
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_itm.commands import data as data_command
from clip_itm.data.check import caption_oddity, check_splits
from clip_itm.data.configuration import FlickrData, FolderData
from clip_itm.data.load import load_splits

TABLES = {"train": "train.jsonl", "val": "val.jsonl"}


class Folder:
    """A data set under construction; photos differ in their bytes."""

    def __init__(self, root: Path):
        self.root = root
        self.rows = {"train": [], "val": []}

    def add(
        self, split: str, name: str, captions: list[str] | str = "a dog runs", content: bytes | None = None
    ) -> None:
        path = self.root / name
        if content is None:
            content = jpeg(Image.new("RGB", (8, 8), (30 * len(self.rows["train"]), 30 * len(self.rows["val"]), 0)))
        path.write_bytes(content)
        self.rows[split].append({"image": name, "caption": captions})

    def splits(self, **settings):
        for split, rows in self.rows.items():
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (self.root / TABLES[split]).write_text(lines, encoding="utf-8")
        data = FolderData(root=str(self.root), cache_dir=str(self.root / "cache"), split_files=TABLES, **settings)
        return load_splits(data, verify=False)

    def check(self, **settings):
        return check_splits(self.splits(), progress=False, workers=2, **settings)


def encoded(image: Image.Image, format: str, **settings) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **settings)
    return file.getvalue()


def jpeg(image: Image.Image, **settings) -> bytes:
    return encoded(image, "JPEG", **settings)


@pytest.fixture
def folder(tmp_path) -> Folder:
    folder = Folder(tmp_path)
    folder.add("train", "a.jpg", ["a dog runs", "two words"])
    folder.add("train", "b.jpg", "one")
    folder.add("val", "c.jpg")
    return folder


def test_a_good_data_set(folder):
    report = folder.check()
    train = report.splits["train"]
    assert report.ok
    assert (report.problems, report.warnings, report.duplicates) == ([], [], [])
    assert (train.images, train.captions, train.captions_per_image) == (2, 3, {1: 1, 2: 1})
    assert train.length == {"mean": 2.0, "median": 2.0, "p99": pytest.approx(2.98), "max": 3.0}
    assert (train.length_unit, train.cut_captions, train.formats) == ("words", None, {"JPEG": 2})
    assert "Training can start." in report.as_text()
    assert json.loads(json.dumps(report.as_dict()))["splits"]["val"]["images"] == 1


def test_lengths_in_tokens_and_how_many_are_cut(folder):
    report = folder.check(count_tokens=lambda captions: [len(caption) for caption in captions], max_tokens=8)
    train = report.splits["train"]
    assert (train.length_unit, train.length["max"], train.cut_captions) == ("tokens", 10, 2)
    assert report.ok
    assert report.warnings[0] == "split train: 2 captions are cut to 8 tokens"
    assert "captions over 8 tokens" in report.as_text()


def test_unusual_photos_are_counted(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.radial_gradient("L")
    png = encoded(picture.convert("RGB"), "PNG")
    folder.add("train", "turned.jpg", content=jpeg(picture.convert("RGB"), exif=exif))
    folder.add("train", "grey.jpg", content=jpeg(picture))
    folder.add("train", "cmyk.jpg", content=jpeg(picture.convert("CMYK")))
    folder.add("train", "palette.png", content=encoded(picture.convert("P"), "PNG"))
    folder.add("train", "deep.png", content=encoded(Image.fromarray(np.eye(9, dtype=np.uint16)), "PNG"))
    folder.add("train", "deep_rgb.png", content=sixteen_bit_rgb_png())
    folder.add("train", "clear.png", content=encoded(picture.convert("RGBA"), "PNG"))
    folder.add("train", "plain.png", content=png)
    report = folder.check()
    assert report.ok
    assert {trait: [Path(p).name for p in photos] for trait, photos in report.splits["train"].traits.items()} == {
        "EXIF-rotated": ["turned.jpg"],
        "greyscale": ["grey.jpg", "deep.png"],
        "CMYK": ["cmyk.jpg"],
        "palette": ["palette.png"],
        "16-bit": ["deep.png", "deep_rgb.png"],
        "transparent": ["clear.png"],
        "extremely shaped": ["deep_rgb.png"],
    }
    assert report.splits["train"].formats == {"JPEG": 5, "PNG": 5}
    assert "16-bit photos" in report.as_text()


def sixteen_bit_rgb_png() -> bytes:
    """Pillow cannot write one."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" + struct.pack(">6H", *range(6)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_broken_photos_are_all_found(folder):
    picture = Image.radial_gradient("L")
    png = encoded(picture, "PNG")
    folder.add("train", "cut.jpg", content=jpeg(picture)[:-900])
    folder.add("val", "cut.png", content=png[: len(png) // 2])
    folder.add("train", "damaged.png", content=png[:60] + b"\xff" * 40 + png[100:])
    folder.add("train", "page.jpg", content=b"<html>")
    folder.add("train", "empty.jpg", content=b"")
    folder.add("val", "gone.jpg")
    (folder.root / "gone.jpg").unlink()
    report = folder.check()
    train, val = report.splits["train"], report.splits["val"]
    assert [message.split(":")[0] for message in train.truncated] == [str(folder.root / "cut.jpg")]
    assert [message.split(":")[0] for message in val.truncated] == [str(folder.root / "cut.png")]
    assert [Path(m.split(":")[0]).name for m in train.unreadable] == ["damaged.png", "page.jpg"]
    assert [Path(p).name for p in train.zero_sized] == ["empty.jpg"]
    assert [Path(p).name for p in val.missing] == ["gone.jpg"]
    assert not report.ok
    assert len(report.problems) == 5
    text = report.as_text()
    assert "Training would fail: 5 problems." in text
    for name in ("cut.jpg", "cut.png", "damaged.png", "page.jpg", "empty.jpg", "gone.jpg"):
        assert name in text


def test_what_is_left_out_is_no_problem_but_told(folder):
    folder.add("train", "gone.jpg")
    (folder.root / "gone.jpg").unlink()
    report = check_splits(folder.splits(skip_missing=True), progress=False)
    assert report.ok
    gone = str(folder.root / "gone.jpg")
    assert report.splits["train"].skipped == [gone]
    assert report.warnings == [f"split train: 1 missing photo is left out: {gone}"]


def test_duplicates_within_and_across_splits(folder):
    for split, name, source in (("train", "d.jpg", "a.jpg"), ("val", "e.jpg", "b.jpg"), ("val", "f.jpg", "b.jpg")):
        folder.add(split, name)
        shutil.copy(folder.root / source, folder.root / name)
    report = folder.check()
    assert [[entry.replace(str(folder.root) + "/", "") for entry in group] for group in report.duplicates] == [
        ["train: a.jpg", "train: d.jpg"],
        ["train: b.jpg", "val: e.jpg", "val: f.jpg"],
    ]
    assert not report.ok
    assert report.problems == []
    assert [warning.replace(str(folder.root) + "/", "") for warning in report.warnings] == [
        "byte-identical photos in split train: a.jpg = d.jpg"
    ]
    assert [leak.replace(str(folder.root) + "/", "") for leak in report.leaks] == [
        "1 photo is in split train and in split val, byte by byte (train: b.jpg = val: e.jpg = val: f.jpg); remove "
        "them from all but one, or choose the splits by a column or by lists of photos"
    ]
    assert "Training would be judged by photos of another split." in report.as_text()


def test_captions(folder):
    folder.add("train", "d.jpg", ["fine", " "])
    folder.add("train", "e.jpg", [])
    folder.add("val", "f.jpg", "cafÃ© ouvert")
    folder.add("val", "g.jpg", "lost \ufffd bytes")
    report = folder.check()
    assert [problem.split(" (")[0] for problem in report.problems] == [
        "split train: 1 empty caption",
        "split train: 1 photo without captions",
    ]
    assert "train.jsonl:3:1" in report.problems[0]
    assert report.splits["train"].captions_per_image == {0: 1, 1: 1, 2: 2}
    odd = report.splits["val"].odd_captions
    assert sorted(odd.values()) == [["val.jsonl:2"], ["val.jsonl:3"]]
    assert report.warnings == [f"split val: 1 caption has {oddity}: {ids[0]}" for oddity, ids in odd.items()]


@pytest.mark.parametrize(
    ("caption", "oddity"),
    [
        ("A plain caption.", None),
        ("Café, naïve, 犬が走る, “quoted” – fine…", None),
        ("cafÃ© ouvert", "mojibake"),
        ("itâ€™s a dog", "mojibake"),
        ("lost \ufffd", "replacement characters"),
        ("\ufeffstart", "byte order marks"),
        ("two\nlines", "control characters"),
    ],
)
def test_caption_oddity(caption, oddity):
    found = caption_oddity(caption)
    assert found is None if oddity is None else found.startswith(oddity)


def test_without_a_train_split(folder):
    report = check_splits({"val": folder.splits()["val"]}, progress=False)
    assert report.problems == ["there is no train split, only val"]


RECIPE = """
data:
  source: folder
  root: {root}
  cache_dir: {root}/cache
  split_files: {{train: train.jsonl, val: val.jsonl}}
backbone:
  kind: timm-words
  max_words: 2
  min_word_count: {min_word_count}
training:
  batch_size: 1
evaluation:
  split: val
"""


def run_command(folder: Folder, *words: str, min_word_count: int = 1) -> int:
    """`clip-itm data check` on the folder's recipe."""
    parser = ArgumentParser()
    data_command.add_parser(parser.add_subparsers())
    recipe = folder.root / "recipe.yaml"
    recipe.write_text(RECIPE.format(root=folder.root, min_word_count=min_word_count))
    own = [word for word in words if "." not in word.split("=")[0] or not word.startswith("--")]
    args = parser.parse_args(["data", "check", str(recipe), *own])
    args.overrides = [word for word in words if word not in own]
    return data_command.run(args)


def test_command(folder, capsys):
    folder.splits()
    assert run_command(folder, "--json", str(folder.root / "report.json"), "--workers", "2") == 0
    assert "tokens mean / median / 99 % / max" in capsys.readouterr().out
    report = json.loads((folder.root / "report.json").read_text())
    assert report["ok"]
    assert report["splits"]["train"]["cut_captions"] == 1  # "a dog runs" has three words

    assert run_command(folder, min_word_count=9) == 0
    output = capsys.readouterr().out
    assert "words mean / median / 99 % / max" in output
    assert "lengths are in words, because the tokenizer of the backbone cannot be loaded: no word occurs 9" in output

    (folder.root / "a.jpg").unlink()
    assert run_command(folder) == 1
    assert "PROBLEM: split train: 1 photo is missing" in capsys.readouterr().out
    assert run_command(folder, "--data.skip_missing=true") == 0

    (folder.root / "train.jsonl").write_text("nonsense\n")
    assert run_command(folder, "--json", str(folder.root / "report.json")) == 1
    assert "train.jsonl, line 1: not valid JSON" in capsys.readouterr().out
    assert not json.loads((folder.root / "report.json").read_text())["ok"]


@pytest.mark.real_data
def test_flickr8k(real_data, tmp_path):
    data = FlickrData(root=str(real_data / "flickr8k"), cache_dir=str(tmp_path))
    report = check_splits(load_splits(data, verify=False), progress=False)
    assert report.ok
    assert {name: split.images for name, split in report.splits.items()} == {"train": 6000, "val": 1000, "test": 1000}
    assert all(split.formats == {"JPEG": split.images} and split.traits == {} for split in report.splits.values())
    pairs = [{Path(entry).name for entry in group} for group in report.duplicates]
    assert pairs == [{"2851198725_37b6027625.jpg", "3050606344_af711c726c.jpg"}]
