"""Weights and ids of captions in people's own tables, in the index of pairs, in hashes and in batches."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from clip_itm.data.batches import PairDataset
from clip_itm.data.configuration import FolderData
from clip_itm.data.load import load_splits
from clip_itm.data.noise import CaptionNoise
from clip_itm.data.rows import ROW_FEATURES, WEIGHTED_ROW_FEATURES
from support.data_folders import photo, write

TABLES = {
    "captions.csv": ["image,caption,caption_weight", "a.jpg,one,0.25", "b.jpg,three,1", "a.jpg,two,0"],
    "captions.tsv": ["path\ttext\tcaption_weights", 'a.jpg\t["one", "two"]\t[0.25, 0]', "b.jpg\tthree\t1.0"],
    "metadata.csv": ["file_name,caption_1,caption_2,caption_weights", 'a.jpg,one,two,"[0.25, 0]"', "b.jpg,three,,1"],
    "metadata.jsonl": [
        '{"image": "a.jpg", "captions": ["one", "two"], "caption_weights": [0.25, 0]}',
        '{"image": "b.jpg", "captions": ["three"]}',
    ],
}


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("a.jpg", "b.jpg"):
        photo(tmp_path / "photos" / name)
    return tmp_path / "photos"


def load(folder: Path, table: str, lines: list[str], **settings):
    write(folder / table, lines)
    shares = {"val_fraction": 0, "test_fraction": 0}
    settings = {"root": str(folder), "captions": table, "cache_dir": str(folder.parent / "cache"), **shares, **settings}
    return load_splits(FolderData(**settings))


@pytest.mark.parametrize("table", TABLES)
def test_weights_are_read_and_follow_their_captions(folder, table):
    train = load(folder, table, TABLES[table])["train"]
    assert train.pairs.captions.to_pylist() == ["one", "two", "three"]
    assert train.pairs.weight.dtype == np.float32
    assert train.pairs.weight.tolist() == [0.25, 0, 1]
    assert train.rows.features == WEIGHTED_ROW_FEATURES


def test_weights_count_in_the_hash_only_where_they_are(folder):
    def table(weights: list) -> list[str]:
        rows = [{"image": "a.jpg", "captions": ["one", "two"]}, {"image": "b.jpg", "captions": ["three"]}]
        return [
            json.dumps(row | ({"caption_weights": own} if own else {})) for row, own in zip(rows, weights, strict=True)
        ]

    none, ones, some, other = (
        load(folder, "t.jsonl", table(weights))["train"]
        for weights in ([None, None], [[1, 1.0], [1]], [[1, 0.5], None], [[0.5, 1], None])
    )
    assert none.pairs.weight is None
    assert none.rows.features == ROW_FEATURES
    assert ones.pairs.weight is None, "weights that are all 1 are none"
    assert ones.sha256 == none.sha256
    assert len({none.sha256, some.sha256, other.sha256}) == 3
    assert none.pairs.captions_sha256 == some.pairs.captions_sha256, "noise belongs to captions, weighted or not"
    # the hash of a split without weights, from before there were any
    assert none.sha256 == "92537a574d405403f0038787effea0ce8799fa9e7556392d11a733e778c6525d"


def test_a_split_without_weights_has_the_hash_it_would_have_alone(folder):
    rows = ["image,caption,split,caption_weight", "a.jpg,one,train,0.5", "b.jpg,three,val,1"]
    weighted = load(folder, "captions.csv", rows)
    plain = load(folder, "captions.csv", [line.rpartition(",")[0] for line in rows])
    assert weighted["train"].pairs.weight.tolist() == [0.5]
    assert weighted["train"].sha256 != plain["train"].sha256
    assert weighted["val"].pairs.weight is None
    assert weighted["val"].sha256 == plain["val"].sha256


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("1.5", "expected a number from 0 to 1 for each caption, got 1.5"),
        ("-0.1", "expected a number from 0 to 1"),
        ("NaN", "expected a number from 0 to 1"),
        ("Infinity", "expected a number from 0 to 1"),
        ("null", "expected a number from 0 to 1 for each caption, got None"),
        ("true", "expected a number from 0 to 1"),
        ('"high"', "expected a number from 0 to 1 for each caption, got 'high'"),
        ('{"a": 1}', "expected a number from 0 to 1"),
        ("[1, [1]]", "expected a number from 0 to 1"),
        ("[1, 1]", "2 weights for 1 caption; expected one for each"),
        ("[]", "0 weights for 1 caption"),
    ],
)
def test_impossible_weights_name_file_and_row(folder, weights, message):
    lines = ['{"image": "a.jpg", "text": "one", "caption_weights": 1}']
    lines.append(f'{{"image": "b.jpg", "text": "three", "caption_weights": {weights}}}')
    with pytest.raises(ValueError, match=r"metadata.jsonl:2, column 'caption_weights'") as error:
        load(folder, "metadata.jsonl", lines)
    assert message in str(error.value)


def test_an_empty_weight_in_a_csv_is_refused(folder):
    with pytest.raises(ValueError, match=r"captions.csv:2, column 'caption_weight': expected a number from 0 to 1"):
        load(folder, "captions.csv", ["image,caption,caption_weight", "a.jpg,one,"])


def test_ids_of_photo_and_captions_are_kept_where_both_are_given(folder):
    lines = [
        '{"image": "a.jpg", "image_id": "train/7", "captions": ["one", "two"], "caption_ids": ["x:1", 9]}',
        '{"image": "b.jpg", "image_id": 8, "captions": "three"}',
    ]
    pairs = load(folder, "metadata.jsonl", lines)["train"].pairs
    assert pairs.image_ids.to_pylist() == ["train/7", "b.jpg"]
    assert pairs.caption_ids.to_pylist() == ["x:1", "9", "metadata.jsonl:2"]


def test_one_file_may_be_two_photos_with_ids_of_their_own(folder):
    line = '{"image": "a.jpg", "image_id": "%s", "captions": ["one"], "caption_ids": ["%s"]}'
    train = load(folder, "metadata.jsonl", [line % ("p", "1"), line % ("q", "2"), line % ("p", "3")])["train"]
    assert train.rows["image_id"][:] == ["p", "q"]
    assert train.rows["caption_ids"][:] == [["1", "3"], ["2"]]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ('"image_id": "p", "caption_ids": ["1", "2"]', "column 'caption_ids': expected an id for each of 1 caption"),
        ('"image_id": "p", "caption_ids": [""]', "column 'caption_ids': expected an id"),
        ('"image_id": "p", "caption_ids": null', "column 'caption_ids': expected an id"),
        ('"image_id": " ", "caption_ids": ["1"]', "column 'image_id' is empty"),
        ('"image_id": "b", "caption_ids": ["1"]', "photo b is .*a.jpg, but was .*b.jpg before"),
    ],
)
def test_impossible_ids_are_refused(folder, ids, message):
    first = '{"image": "b.jpg", "image_id": "b", "captions": ["three"], "caption_ids": ["0"]}'
    with pytest.raises(ValueError, match=f"metadata.jsonl:2.*{message}"):
        load(folder, "metadata.jsonl", [first, f'{{"image": "a.jpg", "captions": ["one"], {ids}}}'])


def test_a_batch_has_the_weights_of_its_pairs_not_of_the_captions_that_moved(folder):
    train = load(folder, "captions.csv", TABLES["captions.csv"])["train"]
    noise = CaptionNoise(np.array([2, 0, 1]), 1.0, "caption", None, train.pairs.captions_sha256)
    features = {"image_features": {"image_features": np.zeros((2, 1))}, "text_features": np.eye(3, dtype=np.float32)}
    batch = PairDataset(train, noise, None, **features).__getitems__([2, 0, 1])
    assert batch["pair_weight"].dtype == torch.float32
    assert batch["pair_weight"].tolist() == [1, 0.25, 0]
    assert batch["text_features"].argmax(dim=1).tolist() == [1, 2, 0]
    plain = load(folder, "plain.csv", ["image,caption", "a.jpg,one", "b.jpg,three"])["train"]
    assert "pair_weight" not in PairDataset(plain, CaptionNoise.clean(plain.pairs), None, **features).__getitems__([0])


def test_weights_of_empty_captions_are_left_out_with_them(folder):
    lines = ["image,caption,caption_weight", "a.jpg,one,0.25", "a.jpg, ,0.75", "b.jpg,three,0.5"]
    pairs = load(folder, "captions.csv", lines, skip_missing=True)["train"].pairs
    assert pairs.caption_ids.to_pylist() == ["captions.csv:2", "captions.csv:4"]
    assert pairs.weight.dtype == np.float32
    assert pairs.weight.tolist() == [0.25, 0.5]
