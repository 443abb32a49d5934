"""Parquet files of photos and captions as a source."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_itm.data.cleaned import write_cleaned
from clip_itm.data.configuration import FolderData, ParquetData, SampleData
from clip_itm.data.images import image_bytes, image_paths, read_image
from clip_itm.data.load import MissingImagesError, load_splits
from clip_itm.data.noise import CaptionNoise
from clip_itm.data.sources import builder, parquet
from support.tars import photo_bytes

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write(file, first: int, count: int, **columns):
    """Photos `first`, `first` + 1, ... with captions; `columns` replace these or come along."""
    file.parent.mkdir(parents=True, exist_ok=True)
    numbers = range(first, first + count)
    image = pa.array([{"bytes": photo_bytes(n), "path": f"{n}.jpg"} for n in numbers], IMAGE)
    columns = {"image": image, "caption": [f"photo {n}" for n in numbers]} | columns
    pq.write_table(pa.table({name: column for name, column in columns.items() if column is not None}), file)
    return file


def data_of(root, tmp_path, **keys) -> ParquetData:
    return ParquetData(root=str(root), cache_dir=str(tmp_path / "cache"), **keys)


def captions_of(splits) -> dict[str, list[str]]:
    return {row["image_id"]: row["captions"] for split in splits.values() for row in split.rows}


def test_bytes_in_several_files(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "BATCH", 7)
    write(tmp_path / "p/train-0.parquet", 0, 20, uid=[f"u{n}" for n in range(20)])
    write(tmp_path / "p/train-1.parquet", 20, 5, uid=[f"u{n}" for n in range(20, 25)])
    write(tmp_path / "p/val-0.parquet", 30, 4, uid=[f"u{n}" for n in range(30, 34)])
    splits = load_splits(data_of(tmp_path / "p", tmp_path))
    assert {name: len(split) for name, split in splits.items()} == {"train": 25, "val": 4}
    assert captions_of(splits) == {f"u{n}": [f"photo {n}"] for n in (*range(25), *range(30, 34))}
    for row in splits["train"].rows:
        assert image_bytes(row["image"]) == photo_bytes(int(row["image_id"][1:]))
    assert splits["train"].pairs.caption_ids.to_pylist()[19:21] == ["train-0.parquet:19", "train-1.parquet:0"]
    assert set(image_paths(splits["train"].rows)) == {None}


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_a_column_of_bytes_and_ids_of_content(tmp_path, kind):
    content = pa.array([photo_bytes(n // 2) for n in range(40)], kind)  # every photo twice
    write(tmp_path / "a.parquet", 0, 40, image=None, jpg=content, caption=None, txt=[str(n) for n in range(40)])
    splits = load_splits(data_of(tmp_path / "a.parquet", tmp_path))
    assert sorted(captions_of(splits).values()) == sorted([str(2 * n), str(2 * n + 1)] for n in range(20))
    assert list(splits) == ["train", "val", "test"]


def test_paths_begin_at_the_folder_of_the_file_and_ids_are_the_same_everywhere(tmp_path):
    hashes = []
    for place in ("here", "there"):
        for n in range(12):
            path = tmp_path / place / f"photos/{n}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(photo_bytes(n))
        paths = pa.array([f"photos/{n}.jpg" for n in range(12)])
        file = write(tmp_path / place / "all.parquet", 0, 12, image=None, path=paths, split=["train"] * 9 + ["val"] * 3)
        splits = load_splits(data_of(file, tmp_path, split_column="split"))
        assert {name: len(split) for name, split in splits.items()} == {"train": 9, "val": 3}
        assert read_image(splits["val"].rows[0]["image"]).size == (24, 24)
        assert image_paths(splits["train"].rows)[0] == str(tmp_path / place / "photos/0.jpg")
        hashes.append(splits["train"].sha256)
    assert hashes[0] == hashes[1]
    (tmp_path / "there/photos/3.jpg").unlink()
    with pytest.raises(MissingImagesError, match=r"train: .*there/photos/3\.jpg"):
        load_splits(data_of(file, tmp_path, split_column="split"))


def test_a_photo_that_is_null_is_told_or_left_out(tmp_path):
    image = pa.array([None, *({"bytes": photo_bytes(n), "path": None} for n in range(11))], IMAGE)
    file = write(tmp_path / "train.parquet", 0, 12, image=image)
    write(tmp_path / "val.parquet", 50, 2)
    with pytest.raises(MissingImagesError, match=r"1 of 14 photos .*\n.*train.parquet:0 \(null\)"):
        load_splits(data_of(file.parent, tmp_path))
    assert len(load_splits(data_of(file.parent, tmp_path, skip_missing=True))["train"]) == 11


@pytest.mark.parametrize(
    ("columns", "keys", "told"),
    [
        ({"image": None}, {}, "no column with a usual name for data.image_column; the columns are caption"),
        ({"caption": None}, {}, "no column with a usual name for data.caption_column; the columns are image"),
        ({}, {"id_column": "nope"}, r"no column 'nope' \(data.id_column\)"),
        ({"image": pa.array([1, 2])}, {}, "column 'image' holds int64; expected bytes"),
        ({"uid": ["a", None]}, {}, "a.parquet:1: column 'uid' is empty"),
        ({"uid": ["a", "a"]}, {}, "the id 'a' stands for two photos, a.parquet:0 and a.parquet:1"),
        ({"split": ["train", "x"]}, {"split_column": "split"}, "a.parquet:1, column 'split': 'x' is no split"),
        ({"caption": [{"a": 1}, {"a": 2}]}, {}, "a.parquet:0, column 'caption': expected a caption"),
    ],
)
def test_what_cannot_be_used_is_told(tmp_path, columns, keys, told):
    file = write(tmp_path / "a.parquet", 0, 2, **columns)
    with pytest.raises(ValueError, match=told):
        load_splits(data_of(file, tmp_path, **keys))


def test_other_and_damaged_files_are_told(tmp_path):
    file = write(tmp_path / "a.parquet", 0, 20)
    whole = file.read_bytes()
    for content in (b"", b"no Parquet", whole[: len(whole) // 2], whole[:-8] + bytes(8)):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.parquet is not a Parquet file, or it is damaged"):
            load_splits(data_of(file, tmp_path))


def test_a_table_of_urls_is_refused_with_the_command_that_downloads_them(tmp_path):
    columns = {"URL": ["http://a/b.jpg"], "TEXT": ["a"], "uid": ["1"]}
    pq.write_table(pa.table(columns), tmp_path / "laion.parquet")
    with pytest.raises(ValueError, match="has URLs") as error:
        load_splits(data_of(tmp_path, tmp_path))
    command = (
        f"img2dataset --url_list {tmp_path / 'laion.parquet'} --input_format parquet --url_col URL --caption_col TEXT "
        "--save_additional_columns '[\"uid\"]' --output_format webdataset --output_folder photos --image_size 256 "
        "--resize_mode keep_ratio"
    )
    assert command in str(error.value)
    for name, separator in (("metadata.csv", ","), ("metadata.tsv", "\t")):
        folder = tmp_path / name[-3:]
        folder.mkdir()
        (folder / name).write_text(f"URL{separator}TEXT\nhttp://a/b.jpg{separator}a\n")
        with pytest.raises(
            ValueError, match=f"img2dataset --url_list .*{name} --input_format {name[-3:]} --url_col URL"
        ):
            load_splits(FolderData(root=str(folder), cache_dir=str(tmp_path / "cache")))
    write(tmp_path / "u/train.parquet", 0, 1, image=None, path=pa.array(["https://a/b.jpg"]))
    with pytest.raises(ValueError, match="img2dataset"):
        load_splits(data_of(tmp_path / "u", tmp_path))


def test_only_changed_files_make_new_rows(tmp_path, monkeypatch):
    file = write(tmp_path / "p/a.parquet", 0, 30)
    data = data_of(tmp_path / "p", tmp_path)
    first = load_splits(data)["train"].sha256
    with monkeypatch.context() as patched:
        patched.setattr(parquet.ParquetTables, "split_tables", lambda self: pytest.fail("they are there"))
        assert load_splits(data)["train"].sha256 == first
    write(file, 0, 29)
    assert load_splits(data)["train"].sha256 != first


def test_what_clean_as_datasets_writes_is_read_back(tmp_path):
    original = load_splits(SampleData(train_images=9, val_images=4, test_images=3, cache_dir=str(tmp_path / "c")))
    noise, keep = CaptionNoise.clean(original["train"].pairs), np.arange(45) % 7 != 0
    weight = np.linspace(0, 1, 45).astype(np.float32)
    write_cleaned(tmp_path / "out", original, noise, keep, weight, {}, layout="datasets")
    again = load_splits(data_of(tmp_path / "out", tmp_path))
    assert again["val"].sha256 == original["val"].sha256
    np.testing.assert_allclose(again["train"].pairs.weight, weight[keep], atol=1e-6)


def test_rows_that_were_damaged_or_cut_are_made_again(tmp_path, monkeypatch):
    data = data_of(write(tmp_path / "p/a.parquet", 0, 30), tmp_path)
    splits = load_splits(data)
    hashes = {name: split.sha256 for name, split in splits.items()}
    del splits
    for largest, damage in ((2**33, lambda content: content[:-900] + bytes(900)), (0, lambda content: content[:-900])):
        monkeypatch.setattr(builder, "REREAD", largest)
        file = next((tmp_path / "cache/rows").rglob("*train*.arrow"))
        file.write_bytes(damage(file.read_bytes()))
        with pytest.warns(UserWarning, match="the rows of this data set are prepared again"):
            assert {name: split.sha256 for name, split in load_splits(data).items()} == hashes
