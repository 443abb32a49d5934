"""People's own folders and data sets of the Hub; the cache of rows; the hashes of splits."""

from pathlib import Path

import pytest
from data_folders import captions_by_photo, photo, photos_of, write
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from clip_itm.data.configuration import CocoData, FolderData, HubData
from clip_itm.data.load import load_splits
from clip_itm.data.splits import hash_split


@pytest.fixture
def cache(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


# folder ---------------------------------------------------------------------------------------------------------------

EXPECTED = {"a.jpg": ["red, one", "red two"], "sub/b.jpg": ["blue"]}
TABLES = {
    "captions.csv": ["image,caption", 'a.jpg,"red, one"', "sub/b.jpg,blue", "./a.jpg,red two"],
    "captions.tsv": ["path\ttext", "a.jpg\tred, one", "a.jpg\tred two", "sub/b.jpg\tblue"],
    "captions.jsonl": [
        '{"photo": "a.jpg", "captions": ["red, one", "red two"]}',
        '{"photo": "sub/b.jpg", "captions": "blue"}',
    ],
    "metadata.jsonl": [
        '{"file_name": "a.jpg", "text": ["red, one", "red two"]}',
        '{"file_name": "sub/b.jpg", "text": ["blue"]}',
    ],
    "metadata.csv": ["file_name,caption_1,caption_2", '"a.jpg","red, one",red two', "sub/b.jpg,blue,"],
    "captions.txt": ["filename,caption", '"a.jpg","[""red, one"", ""red two""]"', "sub/b.jpg,blue"],
}


@pytest.fixture
def folder(tmp_path) -> Path:
    photo(tmp_path / "a.jpg")
    photo(tmp_path / "sub/b.jpg", 9)
    return tmp_path


@pytest.mark.parametrize("table", TABLES)
def test_folder_tables(folder, cache, table):
    write(folder / table, TABLES[table])
    data = FolderData(root=str(folder), cache_dir=cache, val_fraction=0, test_fraction=0)
    train = load_splits(data)["train"]
    assert captions_by_photo(train) == EXPECTED
    assert photos_of(train) == [str(folder / "a.jpg"), str(folder / "sub/b.jpg")]


def test_folder_caption_ids_name_the_place(folder, cache):
    data = FolderData(root=str(folder), cache_dir=cache, val_fraction=0, test_fraction=0)
    write(folder / "captions.csv", TABLES["captions.csv"])
    assert load_splits(data)["train"].rows["caption_ids"][0] == ["captions.csv:2", "captions.csv:4"]
    write(folder / "metadata.csv", TABLES["metadata.csv"])
    assert load_splits(data)["train"].rows["caption_ids"][0] == ["metadata.csv:2:caption_1", "metadata.csv:2:caption_2"]
    write(folder / "metadata.jsonl", TABLES["metadata.jsonl"])
    assert load_splits(data)["train"].rows["caption_ids"][0] == ["metadata.jsonl:1:0", "metadata.jsonl:1:1"]


@pytest.mark.parametrize("how", ["column", "named column", "lists", "tables"])
def test_folder_splits(folder, cache, how):
    settings = {}
    if how == "column":
        write(folder / "captions.csv", ["image,caption,split", "a.jpg,x,training", "sub/b.jpg,y,dev"])
    elif how == "named column":
        write(folder / "captions.csv", ["image,caption,part", "a.jpg,x,Train", "sub/b.jpg,y,validation"])
        settings = {"split_column": "part"}
    elif how == "lists":
        write(folder / "captions.csv", ["image,caption", "a.jpg,x", "sub/b.jpg,y", "c.jpg,unused"])
        write(folder / "t.txt", ["./a.jpg"])
        write(folder / "v.txt", ["sub/b.jpg"])
        settings = {"split_files": {"train": "t.txt", "val": "v.txt"}}
    else:
        write(folder / "t.csv", ["image,caption", "a.jpg,x"])
        write(folder / "v.jsonl", ['{"image": "sub/b.jpg", "caption": "y"}'])
        settings = {"split_files": {"train": "t.csv", "val": "v.jsonl"}}
    splits = load_splits(FolderData(root=str(folder), cache_dir=cache, **settings))
    assert {name: captions_by_photo(split) for name, split in splits.items()} == {
        "train": {"a.jpg": ["x"]},
        "val": {"sub/b.jpg": ["y"]},
    }


@pytest.mark.parametrize(
    ("lines", "settings", "message"),
    [
        (["image,caption", "a.jpg,one, two"], {}, r"line 2: 3 fields, but the header has 2 .*double quotes"),
        (["image,image", "a.jpg,x"], {}, "line 1: expected a header of different column names"),
        (
            ["image,caption", 'a.jpg,"open'],
            {},
            r"captions.csv, line 2: not valid CSV \(the quote that opens here is never",
        ),
        (["name,caption", "a.jpg,x"], {}, "usual name for data.image_column; the columns are name, caption"),
        (["image,words", "a.jpg,x"], {}, "no column with a usual name for data.caption_columns"),
        (["image,caption", "a.jpg,x"], {"caption_columns": ["de"]}, r"no column 'de' \(data.caption_columns\)"),
        (["image,caption", "a.jpg,x"], {"split_column": "part"}, r"no column 'part' \(data.split_column\)"),
        (["image,caption", ",x"], {}, "captions.csv:2: column 'image' names no photo"),
        (["image,caption,split", "a.jpg,x,half"], {}, "captions.csv:2, column 'split': 'half' is no split"),
        (
            ["image,caption,split", "a.jpg,x,val", "a.jpg,y,test"],
            {},
            "captions.csv:3: .* is in split test, but was in val",
        ),
        (["image,caption"], {}, "captions.csv: the table has no rows"),
        ([""], {}, "line 1: expected a header"),
        (["image,caption", "a.jpg,x"], {"captions": "no.csv"}, "no.csv: there is no such file"),
        (["image,caption", "a.jpg,x"], {"split_files": {"train": "captions.csv", "val": "v.txt"}}, "not some of each"),
    ],
)
def test_folder_errors(folder, cache, lines, settings, message):
    write(folder / "captions.csv", lines)
    with pytest.raises(ValueError, match=message):
        load_splits(FolderData(root=str(folder), cache_dir=cache, **settings))


def test_folder_more_errors(folder, cache):
    data = FolderData(root=str(folder), cache_dir=cache)
    with pytest.raises(ValueError, match=r"none of metadata.jsonl, .* is there; name the table with data.captions"):
        load_splits(data)
    write(folder / "captions.jsonl", ['{"image": "a.jpg", "caption": 3}'])
    with pytest.raises(
        ValueError, match=r"captions.jsonl:1, column 'caption': expected a caption or a list of captions"
    ):
        load_splits(data)
    write(folder / "captions.jsonl", ['{"image": "a.jpg", "caption": "x"}', "oops"])
    with pytest.raises(ValueError, match=r"captions.jsonl, line 2: not valid JSON"):
        load_splits(data)
    write(folder / "captions.jsonl", ['["a.jpg", "x"]'])
    with pytest.raises(ValueError, match=r"captions.jsonl, line 1: expected an object with columns as keys"):
        load_splits(data)
    write(folder / "captions.jsonl", ['{"image": "a.jpg", "caption": "x"}'])
    write(folder / "t.txt", ["b.jpg"])
    with pytest.raises(ValueError, match=r"no row for 1 photos of data.split_files: \['b.jpg'\]"):
        load_splits(data.model_copy(update={"split_files": {"train": "t.txt"}}))
    with pytest.raises(ValidationError, match=r"must stay below 1, or nothing is left to train on"):
        FolderData(root="x", val_fraction=0.5, test_fraction=0.5)


def test_byte_order_mark_is_no_part_of_the_first_column(folder, cache):
    (folder / "captions.csv").write_text("\ufeffimage,caption\r\na.jpg,Café\r\n", encoding="utf-8")
    data = FolderData(root=str(folder), cache_dir=cache, val_fraction=0, test_fraction=0)
    assert captions_by_photo(load_splits(data)["train"]) == {"a.jpg": ["Café"]}


@pytest.mark.parametrize(("encoding", "line"), [("latin-1", 2), ("utf-16", 1)])
def test_other_encodings_are_told_with_the_line(folder, cache, encoding, line):
    (folder / "captions.csv").write_text("image,caption\na.jpg,Café\n", encoding=encoding)
    with pytest.raises(ValueError, match=rf"captions.csv, line {line}: byte 0x.. is not UTF-8; convert the file"):
        load_splits(FolderData(root=str(folder), cache_dir=cache))


# hub ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path):
    import datasets

    for number in range(6):
        photo(tmp_path / f"{number}.png", number)
    columns = {
        "img": [(tmp_path / f"{number}.png").read_bytes() for number in range(6)],
        "file": [str(tmp_path / f"{number}.png") for number in range(6)],
        "key": [number // 2 for number in range(6)],
        "text": [f"caption {number}" for number in range(6)],
        "texts": [[f"caption {number}", "another"] for number in range(6)],
        "part": ["train", "train", "val", "val", "restval", "train"],
    }
    dataset = datasets.Dataset.from_dict(columns).cast_column("img", datasets.Image())
    dataset.info.description = "a long text of its authors"
    datasets.DatasetDict({"train": dataset, "validation": dataset.select([0])}).save_to_disk(tmp_path / "both")
    dataset.save_to_disk(tmp_path / "one")
    return tmp_path


def test_hub_names_columns_and_captions(hub, cache):
    data = HubData(path=str(hub / "both"), image_column="img", caption_column="texts", cache_dir=cache)
    splits = load_splits(data)
    assert {name: len(split) for name, split in splits.items()} == {"train": 6, "val": 1}
    row = splits["train"].rows[1]
    assert (row["image_id"], row["captions"]) == ("train/1", ["caption 1", "another"])
    assert row["caption_ids"] == ["train:1:0", "train:1:1"]
    assert row["image"]["bytes"] == (hub / "1.png").read_bytes()
    assert splits["train"].rows.info.description == ""


def test_hub_paths_and_neighbouring_rows_of_a_photo(hub, cache):
    data = HubData(
        path=str(hub / "both"),
        image_column="file",
        caption_column="text",
        image_id_column="key",
        cache_dir=cache,
        splits={"train": "train"},
    )
    train = load_splits(data)["train"]
    assert captions_by_photo(train)["1"] == ["caption 2", "caption 3"]
    assert photos_of(train) == [str(hub / f"{number}.png") for number in (0, 2, 4)]


def test_hub_single_split_is_divided(hub, cache):
    data = HubData(path=str(hub / "one"), image_column="img", caption_column="text", cache_dir=cache)
    by_column = load_splits(data.model_copy(update={"split_column": "part"}))
    assert {name: split.rows["captions"][:] for name, split in by_column.items()} == {
        "train": [["caption 0"], ["caption 1"], ["caption 4"], ["caption 5"]],
        "val": [["caption 2"], ["caption 3"]],
    }
    by_hash = load_splits(data.model_copy(update={"val_fraction": 0.4, "test_fraction": 0.3}), verify=False)
    assert {i: name for name, split in by_hash.items() for i in split.rows["image_id"]} == {
        f"train/{number}": hash_split(f"train/{number}", 0, 0.4, 0.3) for number in range(6)
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"image_column": "photo"},
            "data.image_column 'photo' is no column of images or paths; the columns are img, file",
        ),
        ({"image_column": "texts"}, "data.image_column 'texts' is no column of images"),
        ({"caption_column": "words"}, r"no column 'words' \(data.caption_column\)"),
        ({"caption_column": "key"}, "row 0: expected a caption or a list of captions, got 0"),
        ({"image_id_column": "id"}, r"no column 'id' \(data.image_id_column\)"),
        ({"splits": {"train": "all"}}, r"data.splits names \['all'\], but the splits are \['train', 'validation'\]"),
    ],
)
def test_hub_errors(hub, cache, settings, message):
    values = {"image_column": "img", "caption_column": "text", **settings}
    with pytest.raises(ValueError, match=message):
        load_splits(HubData(path=str(hub / "both"), cache_dir=cache, **values))


# cache, hash ----------------------------------------------------------------------------------------------------------


def test_an_edited_annotation_file_is_read_again(folder, cache):
    data = FolderData(root=str(folder), cache_dir=cache, val_fraction=0, test_fraction=0)
    write(folder / "captions.csv", ["image,caption", "a.jpg,first"])
    first = load_splits(data)["train"]
    stored = sorted(Path(cache).rglob("*.arrow"))
    assert load_splits(data)["train"].sha256 == first.sha256
    assert sorted(Path(cache).rglob("*.arrow")) == stored  # and an unchanged one is not
    write(folder / "captions.csv", ["image,caption", "a.jpg,again"])
    second = load_splits(data)["train"]
    assert captions_by_photo(second) == {"a.jpg": ["again"]}
    assert second.sha256 != first.sha256


def test_renamed_coco_photos_are_found_again(tmp_path, cache):
    write(tmp_path / "annotations/scan_split/train_ids.txt", ["7"])
    write(tmp_path / "annotations/scan_split/train_caps.txt", ["a"] * 5)
    data = CocoData(root=str(tmp_path), cache_dir=cache)
    old = photo(tmp_path / "images/COCO_train2014_000000000007.jpg")
    assert photos_of(load_splits(data)["train"]) == [str(old)]
    new = old.rename(tmp_path / "images/COCO_2014_000000000007.jpg")
    assert photos_of(load_splits(data)["train"]) == [str(new)]


def test_split_hash_knows_captions_but_no_paths(tmp_path, cache):
    hashes = []
    for place, caption in (("here", "same"), ("there", "same"), ("there", "other")):
        photo(tmp_path / place / "a.jpg")
        write(tmp_path / place / "captions.csv", ["image,caption", f"a.jpg,{caption}"])
        data = FolderData(root=str(tmp_path / place), cache_dir=cache, val_fraction=0, test_fraction=0)
        hashes.append(load_splits(data)["train"].sha256)
    assert hashes[0] == hashes[1] != hashes[2]


@given(st.text(min_size=1), st.integers(0, 5), st.floats(0, 0.4), st.floats(0, 0.4))
def test_hash_split_grows_with_its_share(image_id, seed, val, test):
    split = hash_split(image_id, seed, val, test)
    assert split == hash_split(image_id, seed, val, test)
    if split == "test":
        assert hash_split(image_id, seed, val, test + 0.1) == "test"
    if split == "train":
        assert hash_split(image_id, seed, val / 2, test / 2) == "train"


def test_hash_split_shares():
    splits = [hash_split(str(number), 0, 0.2, 0.1) for number in range(5000)]
    assert splits.count("val") == pytest.approx(1000, abs=100)
    assert splits.count("test") == pytest.approx(500, abs=75)
    assert splits != [hash_split(str(number), 1, 0.2, 0.1) for number in range(5000)]
