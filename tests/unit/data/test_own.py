"""People's own folders and data sets of the Hub; the cache of rows; the hashes of splits."""

from pathlib import Path

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from xxhash import xxh3_128_hexdigest

from clip_itm.data.configuration import CocoData, FolderData, HubData
from clip_itm.data.formats.splits import hash_split
from clip_itm.data.load import load_splits
from clip_itm.data.skipped import notes
from support.data_folders import captions_by_photo, image_ids_of, photo, write


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
    assert image_ids_of(train) == [str(folder / "a.jpg"), str(folder / "sub/b.jpg")]


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
    with pytest.raises(ValueError, match=r"no row for 1 photo of data.split_files: \['b.jpg'\]"):
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
    for number in range(7):
        photo(tmp_path / f"{number}.png", number)
    columns = {
        "img": [(tmp_path / f"{number}.png").read_bytes() for number in range(7)],
        "file": [str(tmp_path / f"{number}.png") for number in range(7)],
        "key": [number // 2 for number in range(7)],
        "text": [f"caption {number}" for number in range(7)],
        "texts": [[f"caption {number}", "another"] for number in range(7)],
        "part": ["train", "train", "val", "val", "restval", "train", "test"],
    }
    dataset = datasets.Dataset.from_dict(columns).cast_column("img", datasets.Image())
    dataset.info.description = "a long text of its authors"
    train = dataset.select(range(6))
    datasets.DatasetDict({"train": train, "validation": dataset.select([6])}).save_to_disk(tmp_path / "both")
    train.save_to_disk(tmp_path / "one")
    return tmp_path


def test_hub_names_columns_and_captions(hub, cache):
    data = HubData(path=str(hub / "both"), image_column="img", caption_column="texts", cache_dir=cache)
    splits = load_splits(data)
    assert {name: len(split) for name, split in splits.items()} == {"train": 6, "val": 1}
    row = splits["train"].rows[1]
    content = (hub / "1.png").read_bytes()
    assert (row["image_id"], row["captions"]) == (xxh3_128_hexdigest(content), ["caption 1", "another"])
    assert row["caption_ids"] == ["train:1:0", "train:1:1"]
    assert row["image"]["bytes"] == content
    assert splits["train"].rows.info.description == ""


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5, 6, 7], [0, 2, 4, 6, 1, 3, 5, 7], [7, 0, 6, 1, 5, 2, 4, 3]])
@pytest.mark.parametrize("by", ["key", "image_id", "path", "content", "struct"])
def test_hub_rows_of_a_photo_are_one_photo_wherever_they_stand(tmp_path, cache, caplog, by, order):
    files = [photo(tmp_path / f"{number}.png", number) for number in range(4)]
    image = [str(files[row // 2]) if by == "path" else files[row // 2].read_bytes() for row in order]
    if by == "struct":
        image = [{"bytes": content, "path": f"{row}.png"} for row, content in zip(order, image, strict=True)]
    columns = {"image": image, "caption": [f"caption {row}" for row in order]}
    if by in ("key", "image_id"):
        columns[by] = [row // 2 for row in order]
    dataset = datasets.Dataset.from_dict(columns)
    if by in ("key", "content"):
        dataset = dataset.cast_column("image", datasets.Image())
    dataset.save_to_disk(tmp_path / "set")
    settings = {"image_id_column": "key"} if by == "key" else {}
    data = HubData(path=str(tmp_path / "set"), cache_dir=cache, val_fraction=0, test_fraction=0, **settings)
    splits = load_splits(data, verify=False)
    captions = [own for split in splits.values() for own in split.rows["captions"]]
    assert sorted(sorted(own) for own in captions) == [[f"caption {2 * n}", f"caption {2 * n + 1}"] for n in range(4)]
    name = {"key": "'key'", "image_id": "'image_id'", "struct": "content"}.get(by, by)
    (note,) = {note for split in splits.values() for note in notes(split)}
    assert note == f"split train: 8 rows are 4 photos (the same {name} is one photo)"
    if order == [0, 1, 2, 3, 4, 5, 6, 7]:
        ids = {own[0]: i for split in splits.values() for i, own in zip(*photo_columns(split), strict=True)}
        expected = {
            "path": lambda n: str(files[n]),
            "content": lambda n: xxh3_128_hexdigest(files[n].read_bytes()),
        }.get(name, str)
        assert ids == {f"caption {2 * n}": expected(n) for n in range(4)}


@pytest.mark.parametrize("by", ["content", "path"])
def test_hub_column_image_id_that_numbers_rows_does_not_tear_photos_apart(tmp_path, cache, by):
    files = [photo(tmp_path / f"{number}.bmp", number) for number in range(20)]  # of one size
    owner = [row % 20 for row in range(60)]
    image = [files[n].read_bytes() if by == "content" else str(files[n]) for n in owner]
    columns = {"image": image, "caption": [f"caption {row}" for row in range(60)], "image_id": range(60)}
    datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image()).save_to_disk(tmp_path / "set")
    data = HubData(path=str(tmp_path / "set"), cache_dir=cache, val_fraction=0.3, test_fraction=0.3)
    splits = load_splits(data)
    found = {i: own for split in splits.values() for i, own in zip(*photo_columns(split), strict=True)}
    assert found == {str(n): [f"caption {n + step}" for step in (0, 20, 40)] for n in range(20)}
    assert {note for split in splits.values() for note in notes(split)} == {
        "split train: 60 rows are 20 photos (the same 'image_id' or content is one photo)"
    }
    named = load_splits(data.model_copy(update={"image_id_column": "image_id"}))
    assert sum(len(split) for split in named.values()) == 60, "a column that the recipe names is believed"


def photo_columns(split):
    return split.rows["image_id"], split.rows["captions"]


def test_hub_split_by_hash_does_not_depend_on_the_order_of_rows(tmp_path, cache):
    contents = [photo(tmp_path / f"{number}.png", number).read_bytes() for number in range(12)]
    found = []
    for name, order in (("one", range(12)), ("other", reversed(range(12)))):
        columns = {"image": [contents[n] for n in order for _ in range(2)], "caption": ["x"] * 24}
        dataset = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
        dataset.save_to_disk(tmp_path / name)
        splits = load_splits(
            HubData(path=str(tmp_path / name), cache_dir=cache, val_fraction=0.4, test_fraction=0.2), verify=False
        )
        found.append({split: set(rows.rows["image_id"]) for split, rows in splits.items()})
    assert found[0] == found[1]
    assert sum(map(len, found[0].values())) == 12


def test_hub_photos_in_two_splits_are_told(tmp_path, cache):
    contents = [photo(tmp_path / f"{number}.png", number).read_bytes() for number in range(4)]
    parts = {"train": [0, 1, 2], "validation": [2, 3]}
    datasets.DatasetDict(
        {
            name: datasets.Dataset.from_dict({"image": [contents[n] for n in own], "caption": ["x"] * len(own)})
            for name, own in parts.items()
        }
    ).save_to_disk(tmp_path / "set")
    data = HubData(path=str(tmp_path / "set"), cache_dir=cache)
    with pytest.raises(ValueError, match="1 photo of split val is in split train too"):
        load_splits(data)
    dataset = datasets.Dataset.from_dict(
        {"image": [contents[0], contents[1], contents[0]], "caption": ["x"] * 3, "part": ["train", "val", "test"]}
    )
    dataset.save_to_disk(tmp_path / "one")
    with pytest.raises(ValueError, match=r"row 2, column 'part': photo [0-9a-f]{32} is in split test, but in row 0"):
        load_splits(data.model_copy(update={"path": str(tmp_path / "one"), "split_column": "part"}))


def test_hub_single_split_is_divided(hub, cache):
    data = HubData(path=str(hub / "one"), image_column="img", caption_column="text", cache_dir=cache)
    by_column = load_splits(data.model_copy(update={"split_column": "part"}))
    assert {name: split.rows["captions"][:] for name, split in by_column.items()} == {
        "train": [["caption 0"], ["caption 1"], ["caption 4"], ["caption 5"]],
        "val": [["caption 2"], ["caption 3"]],
    }
    by_hash = load_splits(data.model_copy(update={"val_fraction": 0.4, "test_fraction": 0.3}), verify=False)
    ids = [xxh3_128_hexdigest((hub / f"{number}.png").read_bytes()) for number in range(6)]
    assert {i: name for name, split in by_hash.items() for i in split.rows["image_id"]} == {
        image_id: hash_split(image_id, 0, 0.4, 0.3) for image_id in ids
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
        ({"caption_column": "key"}, "row 0, column 'key': expected a caption or a list of captions, got 0"),
        ({"image_column": "key"}, "data.image_column 'key' is no column of images or paths: it holds int64"),
        ({"image_id_column": "id"}, r"no column 'id' \(data.image_id_column\)"),
        ({"image_id_column": "key"}, "rows 0 and 1 have the same id 0 in column 'key', but different photos"),
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
    assert image_ids_of(load_splits(data)["train"]) == [str(old)]
    new = old.rename(tmp_path / "images/COCO_2014_000000000007.jpg")
    assert image_ids_of(load_splits(data)["train"]) == [str(new)]


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
