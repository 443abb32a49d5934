"""Region data sets: both conventions of rows, CC152K, dev's cut, vectors, what is wrong with one, batches, hashes."""

import json
import pickle
from argparse import ArgumentParser

import numpy as np
import pytest
import torch

from clip_itm.commands import data as data_command
from clip_itm.data.batches import PairDataset
from clip_itm.data.check import check_splits
from clip_itm.data.configuration import RegionsData
from clip_itm.data.load import load_splits
from clip_itm.data.noise import CaptionNoise
from support.region_data import PHOTOS, REGIONS, WIDTH, write_regions


def section(root, **options) -> RegionsData:
    return RegionsData(root=str(root), cache_dir=str(root / "cache"), **options)


def processor(text, return_tensors):
    ids = torch.tensor([[len(caption)] for caption in text])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def test_both_conventions_give_the_same(tmp_path):
    """A row per photo in train, a row per caption in dev and test; captions, ids and features belong together."""
    root = write_regions(tmp_path)
    splits = load_splits(section(root))
    assert {name: len(split) for name, split in splits.items()} == {"train": 40, "val": 12, "test": 10}
    assert len(np.load(root / "dev_ims.npy")) == 5 * PHOTOS["dev"]
    for name, split in zip(("train", "dev", "test"), splits.values(), strict=True):
        stored = np.load(root / f"{name}_ims.npy")[:: 1 if name == "train" else 5]
        batch = split.regions.batch(np.arange(len(split)))
        assert batch["image_tokens"].dtype == torch.float32
        np.testing.assert_array_equal(batch["image_tokens"], stored)
        assert batch["image_mask"].all()
        lines = (root / f"{name}_caps.txt").read_text().splitlines()
        assert split.pairs.captions.to_pylist() == lines
        assert split.rows[3]["image"] is None
        assert split.rows[3]["caption_ids"][1] == f"{name}_caps.txt:17"
    assert splits["val"].rows["image_id"][0] == "1040"
    alike = load_splits(section(write_regions(tmp_path / "other", repeated=("train", "dev", "test"))))
    for name, split in splits.items():
        np.testing.assert_array_equal(
            split.regions.batch(np.array([5, 2]))["image_tokens"], alike[name].regions.batch([5, 2])["image_tokens"]
        )


def test_float16_and_padding(tmp_path):
    root = write_regions(tmp_path, dtype=np.float16)
    stored = np.load(root / "train_ims.npy")
    stored[3, 30:] = 0
    np.save(root / "train_ims.npy", stored)
    batch = load_splits(section(root))["train"].regions.batch(np.array([3, 4]))
    assert batch["image_tokens"].dtype == torch.float32
    assert batch["image_mask"].sum(dim=1).tolist() == [30, REGIONS]


def test_batches(tmp_path):
    """A photo is read once for all its captions; caption vectors follow the noise, photo vectors the photo."""
    split = load_splits(section(write_regions(tmp_path, vectors=7), global_vectors=True))["train"]
    noise = CaptionNoise.draw(split.pairs, 0.5, "caption", 1)
    pairs = [12, 3, 10, 4]
    batch = PairDataset(split, noise, processor).__getitems__(pairs)
    assert batch["image_index"].tolist() == [0, 1, 0, 1]
    assert batch["image_tokens"].shape == (2, REGIONS, WIDTH)
    features = np.load(tmp_path / "train_ims.npy")
    np.testing.assert_array_equal(batch["image_tokens"], features[[2, 0]])
    np.testing.assert_array_equal(batch["image_features"], np.load(tmp_path / "train_clip_ims.npy")[[2, 0]])
    captions = noise.source[pairs]
    assert (captions != pairs).any()
    np.testing.assert_array_equal(batch["text_features"], np.load(tmp_path / "train_clip_caps.npy")[captions])
    lengths = [len(split.pairs.captions[int(number)].as_py()) for number in captions]
    assert batch["input_ids"][:, 0].tolist() == lengths
    batch["image_tokens"].zero_()  # a copy: the file stays as it is
    np.testing.assert_array_equal(split.regions.batch(np.array([2, 0]))["image_tokens"], features[[2, 0]])


def test_tsv_with_quotes(tmp_path):
    """CC152K: one caption per photo; a quote at the start of a caption swallows nothing."""
    root = write_regions(tmp_path, {"train": 40, "dev": 10}, (), captions_per_image=1, tsv=True)
    lines = (root / "train_caps.tsv").read_text().splitlines()
    lines[1] = lines[1].split("\t")[0] + '\t"open, a dog'
    (root / "train_caps.tsv").write_text("\n".join(lines) + "\n")
    train = load_splits(section(root, captions_per_image=1))["train"]
    assert len(train) == len(train.pairs) == 40
    assert train.pairs.captions[1].as_py() == '"open, a dog'
    with pytest.raises(ValueError, match=r"rows 0 and 4 differ, though 5 captions .*set data.captions_per_image"):
        load_splits(section(root))


def test_dev_is_cut_as_published(tmp_path):
    root = write_regions(tmp_path, {"train": 2, "dev": 1002, "test": 1})
    assert len(load_splits(section(root))["val"]) == 1000
    assert len(load_splits(section(root, whole_val=True))["val"]) == 1002


def test_testall(tmp_path):
    root = write_regions(tmp_path, {"train": 4, "dev": 2, "test": 2, "testall": 6})
    assert len(load_splits(section(root))["test"]) == 2
    assert len(load_splits(section(root, test="testall"))["test"]) == 6
    with pytest.raises(ValueError, match=r"there is no testall_ims.npy"):
        load_splits(section(write_regions(tmp_path / "other"), test="testall"))


def test_fewer_photos_and_captions_keep_their_regions(tmp_path):
    """`max_images`, and captions and photos that `skip_missing` leaves out."""
    root = write_regions(tmp_path, vectors=3)
    lines = (root / "train_caps.txt").read_text().splitlines()
    lines[0], lines[10:15] = " ", [""] * 5
    (root / "train_caps.txt").write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=r"6 empty captions \(train_caps.txt:1, train_caps.txt:11"):
        load_splits(section(root))
    train = load_splits(section(root, skip_missing=True, max_images=4, global_vectors=True))["train"]
    assert train.rows["image_id"][:] == ["1000", "1001", "1003", "1004"]
    assert len(train.pairs) == 19
    np.testing.assert_array_equal(
        train.regions.batch(np.array([2]))["image_tokens"], np.load(root / "train_ims.npy")[[3]]
    )
    kept = [1, 2, 3, 4, *range(5, 10), *range(15, 25)]
    np.testing.assert_array_equal(train.regions.caption_vectors, np.load(root / "train_clip_caps.npy")[kept])


def test_hash_covers_the_features(tmp_path):
    first = load_splits(section(write_regions(tmp_path / "a")))
    again = load_splits(section(write_regions(tmp_path / "b")))
    assert {name: split.sha256 for name, split in first.items()} == {k: split.sha256 for k, split in again.items()}
    stored = np.load(tmp_path / "b" / "train_ims.npy")
    stored[7, 0, 0] += 1
    np.save(tmp_path / "b" / "train_ims.npy", stored)
    changed = load_splits(section(tmp_path / "b"))
    assert changed["train"].sha256 != first["train"].sha256
    assert changed["val"].sha256 == first["val"].sha256


def test_a_copy_for_another_process_maps_the_file_itself(tmp_path):
    regions = load_splits(section(write_regions(tmp_path)))["train"].regions
    regions.batch(np.array([0]))
    data = pickle.dumps(regions)
    assert len(data) < 10_000
    np.testing.assert_array_equal(
        pickle.loads(data).batch(np.array([1]))["image_tokens"], regions.batch(np.array([1]))["image_tokens"]
    )


def test_photos_may_be_named(tmp_path):
    root = write_regions(tmp_path)
    ids = [line for name in PHOTOS for line in (root / f"{name}_ids.txt").read_text().split()]
    (root / "id_mapping.json").write_text(json.dumps({image_id: f"COCO_{image_id}.jpg" for image_id in ids}))
    splits = load_splits(section(root, images="photos", id_mapping="id_mapping.json"))
    assert splits["train"].rows[0]["image"]["path"].endswith("photos/COCO_1000.jpg")
    (root / "id_mapping.json").write_text("{}")
    with pytest.raises(ValueError, match=r"id_mapping: the photo 1000 of .* is not in it"):
        load_splits(section(root, images="photos", id_mapping="id_mapping.json"))


def test_bad_files(tmp_path):
    root = write_regions(tmp_path)
    with pytest.raises(ValueError, match=r"train_clip_ims.npy: there is no such file"):
        load_splits(section(root, global_vectors=True))
    np.save(root / "train_ims.npy", np.zeros((7, 36, 4), dtype=np.float32))
    with pytest.raises(ValueError, match=r"train_ims.npy has 7 rows and the split 200 captions; expected one row per"):
        load_splits(section(root))
    np.save(root / "train_ims.npy", np.zeros((40, 4), dtype=np.float32))
    with pytest.raises(ValueError, match=r"train_ims.npy: expected float32 or float16 \[n, R, C\], found float32 \[40"):
        load_splits(section(root))
    (root / "train_ims.npy").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"train_ims.npy: no array of numpy that can be mapped"):
        load_splits(section(root))
    (root / "dev_ids.txt").write_text("1\n2\n")
    with pytest.raises(
        ValueError, match=r"dev_ids.txt has 2 ids; expected one per photo \(12\) or one per caption \(60\)"
    ):
        load_splits(section(root))
    with (root / "dev_caps.txt").open("a") as file:
        file.write("one more\n")
    with pytest.raises(ValueError, match=r"dev_caps.txt has 61 captions, which do not divide among photos of 5"):
        load_splits(section(root))
    with pytest.raises(ValueError, match=r"found no train_caps.txt or train_caps.tsv"):
        load_splits(section(tmp_path / "cache"))
    for options in ({"cache_images": 64}, {"random_crop": 0.5}):
        with pytest.raises(ValueError, match="do nothing for precomputed regions"):
            section(root, **options)
    with pytest.raises(ValueError, match="images and id_mapping belong together"):
        section(root, images="photos")


def test_check(tmp_path):
    root = write_regions(tmp_path)
    report = check_splits(load_splits(section(root), verify=False), progress=False)
    assert report.ok
    assert "36 x 20 float32" in report.as_text()
    assert not any("missing" in line for line in report.warnings)
    stored = np.load(root / "train_ims.npy")
    stored[4, 2, 1], stored[9] = np.nan, 0
    np.save(root / "train_ims.npy", stored)
    report = check_splits(load_splits(section(root), verify=False), progress=False)
    assert report.problems == [
        "split train: 2 photos have features that are not finite or all zero: 1004, 1009; extract them anew"
    ]


def test_check_command(tmp_path, capsys):
    root = write_regions(tmp_path)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"data: {{source: regions, root: {root}, cache_dir: {tmp_path / 'cache'}}}\n"
        "backbone: {kind: regions, region_dim: 20}\ntraining: {batch_size: 8}\n"
    )
    parser = ArgumentParser()
    data_command.add_parser(parser.add_subparsers())
    args = parser.parse_args(["data", "check", str(recipe)])
    args.overrides = []
    assert data_command.run(args) == 0
    assert "tokens mean" in capsys.readouterr().out
