"""Tars of WebDataset and img2dataset as a source."""

import gzip
import json
import os
import tarfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest

from clip_itm.data.cleaned import write_cleaned
from clip_itm.data.configuration import SampleData, WebDatasetData
from clip_itm.data.formats import tar_index
from clip_itm.data.formats.file_list import expand_braces
from clip_itm.data.image_cache import ImageCache
from clip_itm.data.images import UnreadableImageError, image_bytes, image_paths, read_image
from clip_itm.data.load import BrokenImagesError, load_splits
from clip_itm.data.noise import CaptionNoise
from support.tars import photo_bytes, samples, write_shards, write_tar


def data_of(root, tmp_path, **keys) -> WebDatasetData:
    return WebDatasetData(root=str(root), cache_dir=str(tmp_path / "cache"), **keys)


def captions_of(splits) -> dict[str, list[str]]:
    """{image id: captions} of all splits."""
    rows = [row for split in splits.values() for row in split.rows]
    return {row["image_id"]: row["captions"] for row in rows}


# What is in a sample --------------------------------------------------------------------------------------------------


def test_photos_captions_ids_and_bytes(tmp_path):
    splits = load_splits(data_of(write_shards(tmp_path / "tars"), tmp_path))
    assert list(splits) == ["train", "val", "test"]
    assert captions_of(splits) == {f"{n:09d}": [f"photo {n}"] for n in range(60)}
    row = splits["train"].rows[5]
    assert image_bytes(row["image"]) == photo_bytes(int(row["image_id"]))
    assert row["caption_ids"] == [f"{row['image_id']}.txt"]
    assert "caption_weights" not in splits["train"].rows.column_names
    assert set(image_paths(splits["train"].rows)) == {None}, "the data set itself holds them"


@pytest.mark.parametrize(
    ("facts", "keys", "image_id", "captions"),
    [
        ({"uid": "abc", "image_id": "x"}, {}, "abc", ["from txt"]),
        ({"image_id": 7}, {}, "7", ["from txt"]),
        ({"uid": "abc", "mine": "y"}, {"id_key": "mine"}, "y", ["from txt"]),
        ({"caption": "from json"}, {"caption_key": "caption"}, "k", ["from json"]),
        ({"texts": ["one", " two "]}, {"caption_key": "texts"}, "k", ["one", "two"]),
        ({"caption": "from json"}, {"caption_key": "txt"}, "k", ["from txt"]),
    ],
)
def test_the_keys_of_a_sample(tmp_path, facts, keys, image_id, captions):
    content = {"k.txt": b"from txt", "k.json": json.dumps(facts).encode(), "k.PNG": photo_bytes(1, "PNG")}
    write_tar(tmp_path / "train" / "0.tar", content)
    write_tar(tmp_path / "val" / "0.tar", samples(0, 1, texts="t", mine="v", caption="c"))
    found = load_splits(data_of(tmp_path, tmp_path, **keys))
    assert captions_of({"train": found["train"]}) == {image_id: captions}


def test_a_caption_in_json_alone_and_members_in_any_order(tmp_path):
    a, b = samples(0, 1), samples(1, 1)
    members = [*reversed(a.items()), *b.items()]
    members = [members[place] for place in (3, 0, 4, 1, 5, 2)]
    write_tar(tmp_path / "train-0.tar", [one for one in members if not one[0].endswith("txt")])
    write_tar(tmp_path / "val-0.tar", samples(2, 1))
    found = load_splits(data_of(tmp_path, tmp_path))
    assert captions_of(found) == {f"{n:09d}": [f"photo {n}"] for n in range(3)}
    assert found["train"].pairs.caption_ids.to_pylist() == ["000000001.json", "000000000.json"]


def test_a_name_with_folders_and_dots_ends_at_the_first_dot(tmp_path):
    content = {"./a.b/c.d.jpg": b"other", "./a.b/c.jpg": photo_bytes(1), "./a.b/c.txt": b"yes", "./a.b/._c.jpg": b"mac"}
    write_tar(tmp_path / "train.tar", content)
    write_tar(tmp_path / "val.tar", samples(2, 1))
    found = load_splits(data_of(tmp_path, tmp_path))
    assert captions_of({"train": found["train"]}) == {"a.b/c": ["yes"]}
    assert "2 files of other kinds (the first: ./a.b/c.d.jpg)" in found["train"].rows.info.description


# What is wrong with tars ----------------------------------------------------------------------------------------------


def broken_tars(tmp_path) -> dict[str, str]:
    """{what the tar is called: what is told of it}"""
    root = tmp_path / "tars"
    write_shards(root)
    content = (root / "00000.tar").read_bytes()
    (root / "cut.tar").write_bytes(content[: len(content) // 2])
    (root / "empty.tar").write_bytes(b"")
    (root / "text.tar").write_text("no tar")
    (root / "packed.tar").write_bytes(gzip.compress(content))
    write_tar(root / "twice.tar", [("t.jpg", photo_bytes(1000)), ("t.jpg", photo_bytes(1001)), ("t.txt", b"t")])
    write_tar(root / "latin.tar", {"l.jpg": photo_bytes(1002), "l.txt": "ü".encode("latin-1")})
    write_tar(root / "json.tar", {"j.jpg": photo_bytes(1003), "j.json": b"{"})
    write_tar(root / "list.tar", {"i.jpg": photo_bytes(1004), "i.json": b"[1]", "i.txt": b"i"})
    return {
        "cut.tar": "it ends at byte",
        "empty.tar": "the file is empty",
        "text.tar": "this is no tar",
        "packed.tar": "a gzip file and no plain tar",
        "twice.tar/t.jpg": "is there twice",
        "latin.tar/l.txt": "byte 0 is not UTF-8",
        "json.tar/j.json": "not valid JSON",
        "list.tar/i.json": "expected an object",
    }


def test_everything_that_is_wrong_is_told_at_once(tmp_path):
    told = broken_tars(tmp_path)
    with pytest.raises(ValueError, match=f"{len(told)} things are wrong in the tars") as error:
        load_splits(data_of(tmp_path / "tars", tmp_path))
    for name, sentence in told.items():
        assert any(name in line and sentence in line for line in str(error.value).splitlines()), name


def test_skip_broken_goes_on_without_it(tmp_path):
    told = broken_tars(tmp_path)
    splits = load_splits(data_of(tmp_path / "tars", tmp_path, skip_broken=True))
    captions = captions_of(splits)
    assert {f"{n:09d}" for n in range(60)} | {"t", "i"} == set(captions) - {"l", "j"}
    assert f"{len(told)} things are wrong" in splits["train"].rows.info.description
    skipped = {item for split in splits.values() for item, _, _ in split.skipped}
    assert {"l", "j"} <= skipped, "photos whose caption cannot be read"


def test_samples_without_a_photo_are_left_out_and_told_and_without_a_caption_an_error(tmp_path):
    write_tar(tmp_path / "train.tar", samples(0, 3) | {"x.txt": b"alone", "y.json": b"{}", "z.cls": b"1"})
    write_tar(tmp_path / "val.tar", samples(5, 1))
    splits = load_splits(data_of(tmp_path, tmp_path))
    assert len(splits["train"]) == 3
    assert "2 samples without a photo (the first: x)" in splits["train"].rows.info.description
    write_tar(tmp_path / "train.tar", samples(0, 3) | {"x.jpg": photo_bytes(9)})
    with pytest.raises(ValueError, match=r"split train: 1 photo without captions \(x\)"):
        load_splits(data_of(tmp_path, tmp_path))
    assert len(load_splits(data_of(tmp_path, tmp_path, skip_missing=True))["train"]) == 3


@pytest.mark.parametrize("keys", [{"caption_key": "nope"}, {"id_key": "nope"}])
def test_a_key_that_is_not_there_is_told_with_those_that_are(tmp_path, keys):
    with pytest.raises(ValueError, match=r"no 'nope' \(data\.\w+\); the keys are key, caption"):
        load_splits(data_of(write_shards(tmp_path / "tars"), tmp_path, **keys))


def test_a_photo_that_cannot_be_decoded_is_found_before_training(tmp_path):
    write_tar(tmp_path / "train.tar", samples(0, 3) | {"x.jpg": photo_bytes(9)[:200], "x.txt": b"x"})
    write_tar(tmp_path / "val.tar", samples(5, 1))
    assert len(load_splits(data_of(tmp_path, tmp_path, skip_broken=True))["train"]) == 3
    from clip_itm.data.load import image_checker, require_readable

    data = data_of(tmp_path, tmp_path)
    with pytest.raises(BrokenImagesError, match=r"1 of 5 photos cannot be read:\n  train: .*train.tar#.*x.jpg"):
        require_readable(load_splits(data), image_checker(data))


def test_compressed_tars_are_refused_with_what_to_do(tmp_path):
    write_shards(tmp_path / "tars", 1)
    for name in ("a.tar.gz", "a.tgz", "a.tar.zst"):
        (tmp_path / "tars" / name).write_bytes(b"")
    with pytest.raises(ValueError, match=r"3 tars are compressed .*unpack them \(gunzip"):
        load_splits(data_of(tmp_path / "tars", tmp_path))


# Ids ------------------------------------------------------------------------------------------------------------------


def test_one_name_for_two_photos_in_two_tars(tmp_path):
    """As where two data sets of img2dataset lie in one folder: ids get the tar, those of .json stay."""
    root = tmp_path / "tars"
    write_tar(root / "cc3m/00000.tar", samples(0, 4))
    other = {name: photo_bytes(99, side=9) if name.endswith("jpg") else one for name, one in samples(0, 4).items()}
    named = {f"n{n}.{kind}": one for n, (kind, one) in enumerate([("jpg", photo_bytes(7))])}
    named |= {"n0.txt": b"named", "n0.json": b'{"uid": "u"}'}
    write_tar(root / "cc12m/00000.tar", other | named)
    splits = {"train": "cc3m", "val": "cc12m"}
    found = load_splits(data_of(root, tmp_path, splits=splits))
    assert set(captions_of({"": found["train"]})) == {f"cc3m/00000/{n:09d}" for n in range(4)}
    assert set(captions_of({"": found["val"]})) == {f"cc12m/00000/{n:09d}" for n in range(4)} | {"u"}
    assert found["val"].pairs.caption_ids.to_pylist()[::4] == ["cc12m/00000/000000000.txt", "n0.txt"]
    assert "stands for two photos" in found["train"].rows.info.description


def test_one_uid_for_two_photos_is_an_error(tmp_path):
    write_tar(tmp_path / "train.tar", samples(0, 2, uid="same"))
    with pytest.raises(ValueError, match=r"'same' stands for two photos, 000000000.jpg in .* and 000000001.jpg in"):
        load_splits(data_of(tmp_path, tmp_path))


def test_what_clean_as_webdataset_writes_is_read_back(tmp_path):
    """Samples of one photo become one photo, over the end of a tar too; hashes of what was not cleaned are the same."""
    from clip_itm.data import cleaned_layouts

    original = load_splits(SampleData(train_images=9, val_images=4, test_images=3, cache_dir=str(tmp_path / "c")))
    noise = CaptionNoise.draw(original["train"].pairs, 0.3, "caption", 1)
    keep = np.ones(45, dtype=bool)
    keep[[0, 1, 2, 3, 4, 11]] = False  # the first photo goes
    weight = np.linspace(0, 1, 45).astype(np.float32)
    before = cleaned_layouts.SHARD_SAMPLES
    try:
        cleaned_layouts.SHARD_SAMPLES = 7
        write_cleaned(tmp_path / "out", original, noise, keep, weight, {}, layout="webdataset")
    finally:
        cleaned_layouts.SHARD_SAMPLES = before
    again = load_splits(data_of(tmp_path / "out", tmp_path))
    assert {name: again[name].sha256 for name in ("val", "test")} == {
        name: original[name].sha256 for name in ("val", "test")
    }
    train = again["train"]
    assert train.pairs.image_ids.to_pylist() == original["train"].pairs.image_ids.to_pylist()[1:]
    got = noise.apply(original["train"].pairs).to_pylist()
    assert train.pairs.captions.to_pylist() == [caption for caption, kept in zip(got, keep, strict=True) if kept]
    np.testing.assert_allclose(train.pairs.weight, weight[keep], atol=1e-6)
    assert read_image(train.rows[0]["image"]).tobytes() == read_image(original["train"].rows[1]["image"]).tobytes()


# Which tars -----------------------------------------------------------------------------------------------------------


def test_a_folder_a_glob_braces_and_one_tar(tmp_path, monkeypatch):
    root = write_shards(tmp_path / "tars")
    (root / "00000.parquet").write_bytes(b"of img2dataset")
    (root / "._00000.tar").write_bytes(b"of a file manager")
    sizes = {}
    monkeypatch.chdir(tmp_path)
    for name in ("tars", "tars/*.tar", "tars/{00000..00002}.tar", "tars/0000{0,1,2}.tar", str(root), "tars/00000.tar"):
        splits = load_splits(data_of(name, tmp_path))
        sizes[name] = sum(len(split) for split in splits.values())
    assert list(sizes.values()) == [60, 60, 60, 60, 60, 20]
    for name, told in (
        ("tars/{00000..00003}.tar", r"1 of 4 files are not there: tars/00003.tar"),
        ("elsewhere", "no .tar files there"),
        ("tars/*.zip", "no .tar files there"),
        ("tars/{5..3}.tar", "no ascending range"),
    ):
        with pytest.raises(ValueError, match=told):
            load_splits(data_of(name, tmp_path))


def test_braces():
    assert list(expand_braces("a{1..3}")) == ["a1", "a2", "a3"]
    assert list(expand_braces("{x,y}/{009..010}.tar")) == ["x/009.tar", "x/010.tar", "y/009.tar", "y/010.tar"]


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train-0.tar", "train-1.tar", "val-0.tar", "test_0.tar"], None),
        (["training/0.tar", "training/1.tar", "validation/0.tar", "test/0.tar"], None),
        (["x0.tar", "x1.tar", "y/0.tar", "z.tar"], {"train": "x*", "val": "y", "test": "z.tar"}),
    ],
)
def test_tars_have_the_split_that_their_names_or_the_recipe_say(tmp_path, names, splits):
    for number, name in enumerate(names):
        write_tar(tmp_path / "tars" / name, samples(10 * number, 10))
    found = load_splits(data_of(tmp_path / "tars", tmp_path, splits=splits))
    assert {name: len(split) for name, split in found.items()} == {"train": 20, "val": 10, "test": 10}


def test_unclear_splits_are_told(tmp_path):
    for number, name in enumerate(["train-0.tar", "val-0.tar", "more.tar"]):
        write_tar(tmp_path / "tars" / name, samples(10 * number, 10))
    with pytest.raises(ValueError, match=r"not those of 1 \(more.tar\)"):
        load_splits(data_of(tmp_path / "tars", tmp_path))
    for splits, told in (
        ({"train": "train-*", "val": "dev-*"}, r"no file fits data.splits, val: dev-\*"),
        ({"train": "*", "val": "val-*"}, "val-0.tar to train and to val"),
    ):
        with pytest.raises(ValueError, match=told):
            load_splits(data_of(tmp_path / "tars", tmp_path, splits=splits))
    found = load_splits(data_of(tmp_path / "tars", tmp_path, splits={"train": "train-*", "val": "val-*"}))
    assert "1 tar is in no split: more.tar" in found["train"].rows.info.description


# Changes, kills, company ----------------------------------------------------------------------------------------------


def indexed(monkeypatch) -> list[str]:
    """The tars that are read from now on, by label."""
    read = []
    plain = tar_index.TarIndex._index

    def spy(self, tar):
        read.append(tar.label)
        return plain(self, tar)

    monkeypatch.setattr(tar_index.TarIndex, "_index", spy)
    return read


def test_only_a_changed_or_new_tar_is_read_again(tmp_path, monkeypatch):
    root, read = write_shards(tmp_path / "tars"), indexed(monkeypatch)
    data = data_of(root, tmp_path)
    first = load_splits(data)["train"].sha256
    assert sorted(read) == ["00000.tar", "00001.tar", "00002.tar"]
    assert load_splits(data)["train"].sha256 == first
    os.utime(root / "00001.tar", (1, 1))
    assert load_splits(data)["train"].sha256 == first
    write_tar(root / "00003.tar", samples(60, 5))
    write_tar(root / "00002.tar", samples(40, 19))
    assert load_splits(data)["train"].sha256 != first
    assert sorted(read[3:]) == ["00001.tar", "00002.tar", "00003.tar"]


def test_a_tar_that_changed_under_an_old_time_is_noticed_when_a_photo_is_read(tmp_path):
    root = write_shards(tmp_path / "tars", 1)
    splits, file = load_splits(data_of(root, tmp_path)), root / "00000.tar"
    status, image = file.stat(), splits["train"].rows[0]["image"]
    content = bytearray(file.read_bytes())
    content[content.index(image_bytes(image)) + 300] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(UnreadableImageError, match=r"00000.tar has changed since its photos were listed"):
        read_image(load_splits(data_of(root, tmp_path))["train"].rows[0]["image"])
    file.unlink()
    with pytest.raises(UnreadableImageError, match="there is no such photo"):
        read_image(image)


def test_a_killed_build_goes_on_and_a_damaged_entry_is_made_again(tmp_path, monkeypatch):
    root, read = write_shards(tmp_path / "tars", 4), indexed(monkeypatch)
    data, plain = data_of(root, tmp_path), tar_index.seal
    sealed = []

    def killed(path):
        plain(path)
        sealed.append(path)
        if len(sealed) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(tar_index.os, "cpu_count", lambda: 1)
    with monkeypatch.context() as patched:
        patched.setattr(tar_index, "seal", killed)
        with pytest.raises(KeyboardInterrupt):
            load_splits(data)
    kept = [path.name for path in (tmp_path / "cache/tars").iterdir()]
    assert len(kept) in (2, 3), "the fourth was begun before the third had failed"
    assert not [name for name in kept if name.startswith(".")], "no half entries"
    del read[:]
    first = load_splits(data)["train"].sha256
    assert len(read) == 4 - len(kept)
    entry = min((tmp_path / "cache/tars").iterdir())
    content = bytearray(entry.read_bytes())
    content[len(content) // 2] ^= 1
    entry.write_bytes(content)
    os.utime(root / "00000.tar", (1, 1))  # the rows are made again of the entries
    assert load_splits(data)["train"].sha256 == first
    assert len(read) - (4 - len(kept)) in (1, 2)  # the one that changed, and the damaged one


def _hash(root, tmp_path):
    return load_splits(data_of(root, tmp_path))["train"].sha256


@pytest.mark.slow
def test_two_processes_at_once(tmp_path):
    root = write_shards(tmp_path / "tars", 6)
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as pool:
        hashes = {future.result() for future in [pool.submit(_hash, root, tmp_path) for _ in range(3)]}
    assert len(hashes) == 1


def test_nothing_is_written_beside_the_data_and_copies_of_photos_are_of_their_content(tmp_path):
    root = write_shards(tmp_path / "tars", 2)
    names = sorted(os.listdir(root))
    splits = load_splits(data_of(root, tmp_path))
    cache = ImageCache(tmp_path / "photos", 8)
    cache.build(splits["train"].rows)
    assert sorted(os.listdir(root)) == names
    root.rename(tmp_path / "moved")
    moved = load_splits(data_of(tmp_path / "moved", tmp_path))
    assert moved["train"].sha256 == splits["train"].sha256
    assert all(cache.is_ready(row["image"]) for row in moved["train"].rows)
    assert read_image(cache.image(moved["train"].rows[0]["image"])).size == (8, 8)


def test_long_names_of_gnu_and_pax(tmp_path):
    for form, split in ((tarfile.GNU_FORMAT, "train"), (tarfile.PAX_FORMAT, "val")):
        key = f"{split}/{'ü' * 60}/{'x' * 90}"
        write_tar(tmp_path / f"{split}.tar", {f"{key}.jpg": photo_bytes(len(split)), f"{key}.txt": b"long"}, form)
    found = load_splits(data_of(tmp_path, tmp_path))
    assert [split.rows[0]["image_id"] for split in found.values()] == [
        f"{split}/{'ü' * 60}/{'x' * 90}" for split in ("train", "val")
    ]
    assert read_image(found["val"].rows[0]["image"]).size == (24, 24)
