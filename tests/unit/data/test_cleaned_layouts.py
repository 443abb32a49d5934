"""Cleaned data for other programs: Parquet for `datasets`, tar files, uids of DataComp; each read by its program."""

import io
import json
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from clip_itm.data import cleaned_layouts
from clip_itm.data.cleaned import write_cleaned
from clip_itm.data.configuration import HubData
from clip_itm.data.load import load_splits
from clip_itm.data.noise import CaptionNoise
from clip_itm.data.rows import ROW_FEATURES, Split

UIDS = [f"{number:032x}" for number in (2**127 + 5, 7, 2**64, 2**64 - 1, 3)]  # not in their order


def photo(number: int, form: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (number * 40, 9, 200)).save(file, form)
    return file.getvalue()


def split_of(name: str, ids: list[str], captions: int, folder: Path | None = None) -> Split:
    """Photos in files below `folder`, or in the data set itself: by turns JPEG and PNG."""
    rows = []
    for number, image_id in enumerate(ids):
        form = ("JPEG", "PNG")[number % 2]
        content = photo(number, form)
        image = {"bytes": content, "path": None}
        if folder is not None:
            path = folder / f"{name}.{number}.{form.lower()}"
            path.write_bytes(content)
            image = {"bytes": None, "path": str(path)}
        texts = [f"{name} {number} {place} ü" for place in range(captions)]
        rows.append(
            {
                "image": image,
                "image_id": image_id,
                "captions": texts,
                "caption_ids": [f"{image_id}#{place}" for place in range(captions)],
            }
        )
    return Split(name, Dataset.from_list(rows, features=ROW_FEATURES))


@pytest.fixture
def splits(tmp_path) -> dict[str, Split]:
    """train: five photos in files, two captions each; val: two photos that are in the data set."""
    (tmp_path / "photos").mkdir()
    names = [f"photo {number}.x" for number in range(5)]
    return {"train": split_of("train", names, 2, tmp_path / "photos"), "val": split_of("val", ["v", "w"], 1)}


KEEP = np.array([0, 0, 1, 1, 1, 0, 1, 1, 0, 1], dtype=bool)  # the first photo loses both captions


def write(splits, folder: Path, layout: str, keep=KEEP, weight=None) -> dict[str, int]:
    noise = CaptionNoise.clean(splits["train"].pairs)
    return write_cleaned(folder, splits, noise, keep, weight, {}, layout=layout)


# datasets -------------------------------------------------------------------------------------------------------------


def test_datasets_loads_the_folder(splits, tmp_path, monkeypatch):
    monkeypatch.setattr(cleaned_layouts, "SHARD_BYTES", 500)
    monkeypatch.setattr(cleaned_layouts, "ROW_GROUP", 2)
    assert write(splits, tmp_path / "out", "datasets")["kept_images"] == 4
    names = sorted(path.name for path in (tmp_path / "out/data").iterdir())
    assert names[0] == "train-00000-of-00002.parquet", "several files, so that the second is read, too"
    found = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert sorted(found) == ["train", "val"]
    assert found["train"]["image_id"][:] == [f"photo {number}.x" for number in (1, 2, 3, 4)]
    assert found["train"]["captions"][:][1:3] == [["train 2 0 ü"], ["train 3 0 ü", "train 3 1 ü"]]
    assert found["train"]["caption_ids"][:][3] == ["photo 4.x#1"]
    assert found["val"]["captions"][:] == [["val 0 0 ü"], ["val 1 0 ü"]]
    assert [image.getpixel((0, 0))[2] for image in found["val"]["image"][:]] == [pytest.approx(200, abs=3)] * 2
    assert "caption_weights" not in found["train"].column_names


def test_the_source_hub_reads_it(splits, tmp_path):
    write(splits, tmp_path / "out", "datasets")
    keys = {"caption_column": "captions", "image_id_column": "image_id", "cache_dir": str(tmp_path / "cache")}
    again = load_splits(HubData(path=str(tmp_path / "out"), **keys))
    assert again["train"].pairs.captions.to_pylist() == [
        caption for caption, kept in zip(splits["train"].pairs.captions.to_pylist(), KEEP, strict=True) if kept
    ]
    assert again["val"].pairs.image_ids.to_pylist() == ["v", "w"]


def test_weights_are_a_column(splits, tmp_path):
    weight = np.linspace(0, 1, 10, dtype=np.float32)
    write(splits, tmp_path / "out", "datasets", np.ones(10, dtype=bool), weight)
    data = [str(path) for path in (tmp_path / "out/data").glob("train-*")]
    found = datasets.Dataset.from_parquet(data, cache_dir=str(tmp_path / "cache"))
    np.testing.assert_allclose(np.concatenate(found["caption_weights"][:]), weight, atol=1e-6)


# WebDataset -----------------------------------------------------------------------------------------------------------


def samples_of(folder: Path, name: str) -> list[dict[str, bytes]]:
    """Read by hand: files of a sample stand side by side."""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.glob(f"{name}-*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, suffix = member.name.split(".", 1)
                found.setdefault(key, {})[suffix] = tar.extractfile(member).read()
    return list(found.values())


def test_tars_have_a_sample_for_every_caption(splits, tmp_path, monkeypatch):
    monkeypatch.setattr(cleaned_layouts, "SHARD_SAMPLES", 4)
    write(splits, tmp_path / "out", "webdataset")
    assert len(list((tmp_path / "out").glob("train-*.tar"))) == 2
    found = samples_of(tmp_path / "out", "train")
    assert [sample["txt"].decode() for sample in found] == [
        caption for caption, kept in zip(splits["train"].pairs.captions.to_pylist(), KEEP, strict=True) if kept
    ]
    assert {name for sample in found for name in sample} == {"jpg", "png", "txt", "json"}
    assert found[0]["png"] == photo(1, "PNG"), "the photo as it is"
    assert json.loads(found[0]["json"]) == {"image_id": "photo 1.x", "caption_id": "photo 1.x#0"}
    assert len(samples_of(tmp_path / "out", "val")) == 2


def test_the_same_data_are_the_same_tars(splits, tmp_path):
    for name in ("a", "b"):
        write(splits, tmp_path / name, "webdataset")
    assert (tmp_path / "a/train-000000.tar").read_bytes() == (tmp_path / "b/train-000000.tar").read_bytes()


def test_webdataset_itself_reads_the_tars(splits, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    write(splits, tmp_path / "out", "webdataset")
    found = list(webdataset.WebDataset(str(tmp_path / "out/train-000000.tar"), shardshuffle=False).decode("pil"))
    assert [sample["txt"] for sample in found] == [
        caption for caption, kept in zip(splits["train"].pairs.captions.to_pylist(), KEEP, strict=True) if kept
    ]
    assert {(sample.get("jpg") or sample["png"]).size for sample in found} == {(8, 6)}
    assert found[-1]["json"]["caption_id"] == "photo 4.x#1"


def test_datasets_reads_tars_of_photos_of_one_kind(tmp_path):
    write({"train": split_of("train", ["a"], 2)}, tmp_path / "out", "webdataset", np.ones(2, dtype=bool))
    files, cache = str(tmp_path / "out/train-*.tar"), str(tmp_path / "cache")
    found = datasets.load_dataset("webdataset", data_files=files, split="train", cache_dir=cache)
    assert found["txt"][:] == ["train 0 0 ü", "train 0 1 ü"]
    assert found["jpg"][:][0].size == (8, 6)


# DataComp -------------------------------------------------------------------------------------------------------------


def test_uids_are_what_the_resharder_looks_up(tmp_path):
    splits = {"train": split_of("train", UIDS, 1), "val": split_of("val", ["no uid"], 1)}
    write(splits, tmp_path / "out", "datacomp", np.array([1, 1, 1, 0, 1], dtype=bool))
    subset = np.load(tmp_path / "out/kept_uids.npy", mmap_mode="r")  # as its load_subset does
    assert subset.dtype == np.dtype("u8,u8")
    assert len(subset) == 4
    for number, uid in enumerate(UIDS):
        key = np.array([divmod(int(uid, 16), 2**64)], np.dtype("u8,u8"))[0]
        count = np.searchsorted(subset, key, "right") - np.searchsorted(subset, key, "left")
        assert count == (number != 3), uid
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["cleaned.json", "kept_uids.npy"]


@pytest.mark.parametrize(
    ("ids", "captions", "why"),
    [
        (["mug.jpg", *UIDS], 1, "'mug.jpg', which is no uid of DataComp .*; give the table the columns image_id"),
        ([*UIDS, UIDS[0][1:]], 1, "which is no uid of DataComp"),
        (UIDS, 2, "photo 80000000000000000000000000000005 has several captions"),
    ],
)
def test_what_is_missing_for_uids_is_said(tmp_path, ids, captions, why):
    splits = {"train": split_of("train", ids, captions)}
    with pytest.raises(ValueError, match=why):
        write(splits, tmp_path / "out", "datacomp", np.ones(len(ids) * captions, dtype=bool))
    assert not (tmp_path / "out").exists()


# all of them ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["folder", "datasets", "webdataset", "datacomp"])
def test_files_of_a_user_stay(splits, tmp_path, layout):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="not an empty folder"):
        write(splits, tmp_path / "out", layout)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("layout", ["datasets", "webdataset"])
def test_a_photo_that_is_gone_is_named_and_nothing_is_left(splits, tmp_path, layout):
    (tmp_path / "photos/train.2.jpeg").unlink()
    with pytest.raises(ValueError, match=r"train\.2\.jpeg"):
        write(splits, tmp_path / "out", layout)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*"))
