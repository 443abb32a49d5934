"""COCO, Flickr and CC120K in every layout that is accepted, on small folders made here, and the errors for others."""

import json
from pathlib import Path

import pytest

from clip_itm.data.configuration import Cc120kData, CocoData, FlickrData, FolderData
from clip_itm.data.formats.splits import hash_split
from clip_itm.data.load import load_splits
from support.data_folders import captions_by_photo, golden_folder, image_ids_of, photo, write


@pytest.fixture
def cache(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


# scan_split -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "section"), [("coco", CocoData), ("f30k", FlickrData), ("cc", Cc120kData)])
def test_scan_split_golden(golden, tmp_path, cache, name, section):
    arrays = golden("npc_dataset_layout")
    golden_folder(tmp_path, arrays, name)
    splits = load_splits(section(root=str(tmp_path), cache_dir=cache), verify=False)
    for split, paths in (("train", arrays[f"{name}_train_paths"][:, 0]), ("val", arrays[f"{name}_dev_paths"])):
        pairs = splits[split].pairs
        files = image_ids_of(splits[split])
        assert [str(Path(files[k]).relative_to(tmp_path)) for k in pairs.image] == paths.tolist()
        assert [pairs.image_ids[k].as_py() for k in pairs.image] == arrays[f"{name}_sample_image_id"].tolist()
        assert pairs.captions.to_pylist() == arrays[f"{name}_caps_lines"].tolist()
    assert splits["train"].pairs.caption_ids[1].as_py() == "train_caps.txt:2"


@pytest.mark.parametrize("names", ["shipped", "one_folder", "unified"])
def test_scan_split_finds_coco_photos_however_they_are_named(tmp_path, cache, names):
    files = {
        "shipped": ["train2014/COCO_train2014_000000000007.jpg", "val2014/COCO_val2014_000000000042.jpg"],
        "one_folder": ["images/COCO_train2014_000000000007.jpg", "images/COCO_val2014_000000000042.jpg"],
        "unified": ["images/COCO_2014_000000000007.jpg", "images/COCO_2014_000000000042.jpg"],
    }[names]
    expected = [str(photo(tmp_path / file)) for file in files]
    write(tmp_path / "annotations/scan_split/train_ids.txt", ["7", "42"])
    write(tmp_path / "annotations/scan_split/train_caps.txt", list("abcdefghij"))
    train = load_splits(CocoData(root=str(tmp_path), cache_dir=cache))["train"]
    assert image_ids_of(train) == expected
    assert captions_by_photo(train) == {"7": list("abcde"), "42": list("fghij")}


@pytest.mark.parametrize(
    ("ids", "captions", "message"),
    [
        (["7", "42"], ["a"] * 9, r"train_ids.txt has 2 ids and train_caps.txt has 9 captions; .*\(10 captions\)"),
        (["7", ""], ["a"] * 10, None),
        (["7", "", "42"], ["a"] * 15, "train_ids.txt, line 2: an empty photo id"),
        (["7", "x42"], ["a"] * 10, "train_ids.txt: photo id 'x42' is not a COCO number"),
        ([""], ["a"], "train_ids.txt: the file is empty"),
        (["7"], [""], "train_caps.txt: the file is empty"),
    ],
)
def test_scan_split_errors(tmp_path, cache, ids, captions, message):
    write(tmp_path / "annotations/scan_split/train_ids.txt", ids)
    write(tmp_path / "annotations/scan_split/train_caps.txt", captions)
    message = message or r"has 1 ids and train_caps.txt has 10 captions"  # a blank last line is no id
    with pytest.raises(ValueError, match=message):
        load_splits(CocoData(root=str(tmp_path), cache_dir=cache), verify=False)


def test_scan_split_needs_both_files(tmp_path, cache):
    write(tmp_path / "annotations/scan_split/train_ids.txt", ["7"])
    with pytest.raises(ValueError, match=r"train_caps.txt: there is no such file"):
        load_splits(CocoData(root=str(tmp_path), cache_dir=cache))


def test_flickr_scan_split_id_beyond_image_names(tmp_path, cache):
    photo(tmp_path / "images/a.jpg")
    write(tmp_path / "annotations/scan_split/train_ids.txt", ["1"])
    write(tmp_path / "annotations/scan_split/train_caps.txt", ["a"] * 5)
    write(tmp_path / "annotations/scan_split/image_name.txt", ["a.jpg"])
    with pytest.raises(ValueError, match=r"photo id '1' is not a line number of image_name.txt, .* lines 0 to 0"):
        load_splits(FlickrData(root=str(tmp_path), cache_dir=cache))


# COCO -----------------------------------------------------------------------------------------------------------------


def official(root: Path, split: str, year: str, ids: list[int]) -> None:
    images = [{"id": i, "file_name": f"{i:012d}.jpg"} for i in ids]
    annotations = [{"id": 10 * i + k, "image_id": i, "caption": f" {i} {k}\n"} for k in range(2) for i in ids]
    path = root / "annotations" / f"captions_{split}{year}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": annotations}))


@pytest.mark.parametrize("parent", ["", "images"])
@pytest.mark.parametrize("year", ["2014", "2017"])
def test_coco_official(tmp_path, cache, year, parent):
    for split, ids in (("train", [9, 3]), ("val", [5])):
        official(tmp_path, split, year, ids)
        for i in ids:
            photo(tmp_path / parent / f"{split}{year}" / f"{i:012d}.jpg")
    splits = load_splits(CocoData(root=str(tmp_path), cache_dir=cache))
    assert list(splits) == ["train", "val"]
    assert captions_by_photo(splits["train"]) == {"9": ["9 0", "9 1"], "3": ["3 0", "3 1"]}
    assert splits["train"].rows[0]["caption_ids"] == ["90", "91"]
    assert image_ids_of(splits["val"]) == [str(tmp_path / parent / f"val{year}" / "000000000005.jpg")]


@pytest.mark.parametrize(("with_images", "expected"), [(["2014", "2017"], "7"), (["2014"], "4")])
def test_coco_official_newest_year_with_photos(tmp_path, cache, with_images, expected):
    for year, number in (("2014", 4), ("2017", 7)):
        official(tmp_path, "train", year, [number])
        if year in with_images:
            photo(tmp_path / f"train{year}" / f"{number:012d}.jpg")
    assert load_splits(CocoData(root=str(tmp_path), cache_dir=cache))["train"].rows["image_id"][:] == [expected]


def karpathy(path: Path, images: list[dict]) -> Path:
    for number, image in enumerate(images):
        image["sentences"] = [{"raw": f"{image['filename']} {k}", "sentid": 2 * number + k} for k in range(2)]
    return write(path, [json.dumps({"images": images, "dataset": "x"})])


@pytest.mark.parametrize("unified", [False, True])
def test_coco_karpathy(tmp_path, cache, unified):
    images = [
        {"filepath": "train2014", "filename": "COCO_train2014_000000000001.jpg", "cocoid": 1, "split": "train"},
        {"filepath": "val2014", "filename": "COCO_val2014_000000000002.jpg", "cocoid": 2, "split": "restval"},
        {"filepath": "val2014", "filename": "COCO_val2014_000000000003.jpg", "cocoid": 3, "split": "val"},
        {"filepath": "val2014", "filename": "COCO_val2014_000000000004.jpg", "cocoid": 4, "split": "test"},
    ]
    files = [f"{image['filepath']}/{image['filename']}" for image in images]
    if unified:
        files = [f"images/COCO_2014_{image['cocoid']:012d}.jpg" for image in images]
    for file in files:
        photo(tmp_path / file)
    karpathy(tmp_path / "dataset_coco.json", images)
    splits = load_splits(CocoData(root=str(tmp_path), cache_dir=cache))
    assert {name: split.rows["image_id"][:] for name, split in splits.items()} == {
        "train": ["1", "2"],
        "val": ["3"],
        "test": ["4"],
    }
    assert [p for split in splits.values() for p in image_ids_of(split)] == [str(tmp_path / file) for file in files]
    assert splits["test"].rows[0]["caption_ids"] == ["6", "7"]


def test_coco_expected_place_of_a_missing_photo_is_named(tmp_path, cache):
    karpathy(
        tmp_path / "dataset_coco.json", [{"filepath": "val2014", "filename": "x.jpg", "cocoid": 1, "split": "test"}]
    )
    with pytest.raises(ValueError, match=str(tmp_path / "val2014" / "x.jpg")):
        load_splits(CocoData(root=str(tmp_path), cache_dir=cache))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{]", "dataset_coco.json, line 1: not valid JSON"),
        ("[]", "expected an object with a list `images`"),
        ('{"images": [{"split": "train"}]}', r"images\[0\] is not as in Karpathy's files \(KeyError"),
        ('{"images": [{"split": "extra"}]}', r"images\[0\].split: 'extra' is no split"),
        ('{"images": []}', "the annotations name no photos"),
    ],
)
def test_karpathy_errors(tmp_path, cache, content, message):
    write(tmp_path / "dataset_coco.json", [content])
    with pytest.raises(ValueError, match=message):
        load_splits(CocoData(root=str(tmp_path), cache_dir=cache))


def test_official_errors(tmp_path, cache):
    data = CocoData(root=str(tmp_path), cache_dir=cache)
    with pytest.raises(ValueError, match=r"found none of dataset_coco.json, annotations/scan_split/"):
        load_splits(data)
    file = write(tmp_path / "captions_train2017.json", ['{"images": [{"id": 1, "file_name": "a"}]}'])
    with pytest.raises(
        ValueError,
        match=r"captions_train2017.json: not a COCO captions file; expected an object with lists images, ann",
    ):
        load_splits(data)
    write(
        file, ['{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"id": 5, "image_id": 2, "caption": "x"}]}']
    )
    with pytest.raises(ValueError, match="caption 5 is of photo 2, which is not among `images`"):
        load_splits(data)
    with pytest.raises(ValueError, match=r"no dataset_coco.json .* name it with data.karpathy"):
        load_splits(data.model_copy(update={"layout": "karpathy"}))
    with pytest.raises(ValueError, match="no folder annotations/scan_split"):
        load_splits(data.model_copy(update={"layout": "scan_split"}))


def test_root_that_is_not_there(tmp_path, cache):
    for section in (CocoData, FlickrData, Cc120kData, FolderData):
        with pytest.raises(ValueError, match=r"data.root: there is no folder .*/nowhere"):
            load_splits(section(root=str(tmp_path / "nowhere"), cache_dir=cache))


# Flickr ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def flickr(tmp_path) -> Path:
    for number in range(4):
        photo(tmp_path / "images" / f"{number}.jpg", number)
    return tmp_path


TOKEN_LINES = [f"{number}.jpg#{k}\tphoto {number}, {k}" for number in range(4) for k in range(2)]
CSV_LINES = ["image,caption", *(f'{number}.jpg,"photo {number}, {k}"' for number in range(4) for k in range(2))]


def flickr_split_files(root: Path) -> None:
    write(root / "Flickr_8k.trainImages.txt", ["2.jpg", "0.jpg"])
    write(root / "Flickr_8k.devImages.txt", ["1.jpg"])


@pytest.mark.parametrize("file", ["Flickr8k.token.txt", "results_20130124.token", "captions.txt"])
def test_flickr_token_and_csv_give_the_same_splits(flickr, cache, file):
    absent = {"captions.txt": "gone.jpg.1,nobody"}.get(file, "gone.jpg.1#0\tnobody")
    write(flickr / file, [*(CSV_LINES if file == "captions.txt" else TOKEN_LINES), absent])
    flickr_split_files(flickr)
    splits = load_splits(FlickrData(root=str(flickr), cache_dir=cache))
    assert captions_by_photo(splits["train"]) == {
        "2.jpg": ["photo 2, 0", "photo 2, 1"],
        "0.jpg": ["photo 0, 0", "photo 0, 1"],
    }
    assert splits["val"].rows[0]["caption_ids"] == ["1.jpg#0", "1.jpg#1"]
    assert list(splits) == ["train", "val"]
    assert splits["train"].rows.info.description.splitlines() == [
        f"{file}: 1 caption of 1 photo that is not there: gone.jpg.1",
        f"{file}: 1 photo is in no split file",
    ]


def test_flickr_without_split_files_is_split_by_hash(flickr, cache):
    write(flickr / "captions.txt", [*CSV_LINES, "gone.jpg,nobody"])
    splits = load_splits(FlickrData(root=str(flickr), cache_dir=cache, split_seed=2), verify=False)
    assert {i: name for name, split in splits.items() for i in split.rows["image_id"]} == {
        f"{number}.jpg": hash_split(f"{number}.jpg", 2, 0.1, 0.1) for number in range(4)
    }
    assert [Path(p).name for split in splits.values() for p in split.missing] == ["gone.jpg"]


def test_flickr_karpathy(flickr, cache):
    images = [{"filename": f"{n}.jpg", "split": split} for n, split in enumerate(["test", "val", "train", "train"])]
    karpathy(flickr / "dataset_flickr30k.json", images)
    splits = load_splits(FlickrData(root=str(flickr), cache_dir=cache))
    assert {name: list(captions_by_photo(split)) for name, split in splits.items()} == {
        "train": ["2.jpg", "3.jpg"],
        "val": ["1.jpg"],
        "test": ["0.jpg"],
    }


def test_flickr_errors(flickr, cache):
    data = FlickrData(root=str(flickr), cache_dir=cache)
    with pytest.raises(ValueError, match=r"no annotations for data.layout 'auto'; looked for dataset_flickr8k.json"):
        load_splits(data)
    write(flickr / "Flickr8k.token.txt", ["0.jpg#0\tfine", "0.jpg no tab"])
    with pytest.raises(ValueError, match=r"Flickr8k.token.txt, line 2: expected `photo.jpg#0<TAB>caption`"):
        load_splits(data)
    write(flickr / "Flickr8k.token.txt", TOKEN_LINES)
    write(flickr / "Flickr_8k.trainImages.txt", ["0.jpg", "9.jpg"])
    with pytest.raises(ValueError, match=r"no caption for 1 photo of the split files: \['9.jpg'\]"):
        load_splits(data)
    write(flickr / "Flickr_8k.trainImages.txt", ["0.jpg", "1.jpg"])
    write(flickr / "Flickr_8k.testImages.txt", ["3.jpg", "1.jpg"])
    with pytest.raises(ValueError, match=r"testImages.txt, line 2: photo 1.jpg is already in split train"):
        load_splits(data)
    write(flickr / "captions.txt", ["image,caption", "0.jpg,one, two"])
    with pytest.raises(ValueError, match=r"captions.txt, line 2: 3 fields, but the header has 2 \(image, caption\)"):
        load_splits(data.model_copy(update={"annotations": "captions.txt"}))
    write(flickr / "captions.txt", ["file;text"])
    with pytest.raises(
        ValueError, match=r"captions.txt, line 1: the columns are separated by semicolons \('file;text'\)"
    ):
        load_splits(data.model_copy(update={"annotations": "captions.txt"}))


def test_flickr_without_photo_folder(tmp_path, cache):
    write(tmp_path / "captions.txt", CSV_LINES)
    with pytest.raises(ValueError, match=r"no photo folder \(images, .*name it with data.images"):
        load_splits(FlickrData(root=str(tmp_path), cache_dir=cache))


# CC120K ---------------------------------------------------------------------------------------------------------------


def test_cc120k_tsv(tmp_path, cache):
    for name in ("sub/a.jpg", "b c.jpg", "same.jpg"):
        photo(tmp_path / "images" / name)
    write(
        tmp_path / "train.tsv",
        [
            "first\tsub/a.jpg",
            "second\thttps://example.org/x/b%20c.jpg?w=3",
            "gone\thttps://example.org/y/dead.jpg",
            "one\thttps://example.org/1/same.jpg",
            "other\thttps://example.org/2/same.jpg",
        ],
    )
    train = load_splits(Cc120kData(root=str(tmp_path), cache_dir=cache))["train"]
    assert captions_by_photo(train) == {"sub/a.jpg": ["first"], "b c.jpg": ["second"]}
    assert train.missing == (str(tmp_path / "images" / "dead.jpg"),)
    assert train.rows.info.description.startswith("train.tsv: 2 rows left out, because their file name is not theirs")
    assert train.rows["caption_ids"][:] == [["train.tsv:1"], ["train.tsv:2"]]


def test_cc120k_errors(tmp_path, cache):
    data = Cc120kData(root=str(tmp_path), cache_dir=cache)
    with pytest.raises(ValueError, match=r"found no annotations/scan_split/ and no train.tsv"):
        load_splits(data)
    write(tmp_path / "train.tsv", ["caption\ta.jpg", "caption a.jpg"])
    with pytest.raises(ValueError, match=r"train.tsv, line 2: expected `caption<TAB>path or URL`"):
        load_splits(data)
    write(tmp_path / "train.tsv", ["caption\ta.jpg"])
    with pytest.raises(ValueError, match=r"split train is empty; 1 photo is missing: .*images/a.jpg"):
        load_splits(data)
