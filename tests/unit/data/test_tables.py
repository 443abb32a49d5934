"""Tables as people write them: separators, quotes, suffixes, columns, names of photos in other spellings."""

import csv
import json
import os
import unicodedata
from pathlib import Path

import pytest

from clip_itm.data.caption_file import caption_id, read_caption_file
from clip_itm.data.configuration import CocoData, FlickrData, FolderData
from clip_itm.data.formats.tables import read_table
from clip_itm.data.load import load_splits
from clip_itm.data.skipped import notes
from support.data_folders import captions_by_photo, image_ids_of, photo, write


@pytest.fixture
def folder(tmp_path) -> Path:
    for number in range(4):
        photo(tmp_path / "photos" / f"{number}.jpg", 10 * number)
    photo(tmp_path / "photos" / "sub" / "0.jpg", 99)
    return tmp_path / "photos"


def load(folder: Path, table: str = "captions.csv", **given):
    shares = {"val_fraction": 0, "test_fraction": 0, "cache_dir": str(folder.parent / "cache")}
    return load_splits(FolderData(root=str(folder), captions=table, **{**shares, **given}))


def train(folder: Path, table: str = "captions.csv", **given) -> dict[str, list[str]]:
    return captions_by_photo(load(folder, table, **given)["train"])


# quotes, separators, encodings ----------------------------------------------------------------------------------------

SWALLOWED = [
    # a quote opens in one row and closes in another
    (["image,caption", '0.jpg,"a dog', "1.jpg,two dogs", '2.jpg,three dogs"'], 2),
    (["image,caption", '0.jpg,"a dog', '1.jpg,two dogs"'], 2),
    (["image,caption,split", '0.jpg,"a dog,train', "1.jpg,two,train", '2.jpg,three",train'], 2),
    (["caption,image", '"a dog,0.jpg', 'two dogs",1.jpg'], 2),
    (["caption,image", "a dog,0.jpg", '"a cat,1.jpg', "two cats,2.jpg", 'three cats",3.jpg'], 3),
    # names without a suffix
    (["key,caption", 'a1,"a dog', "a2,two dogs", 'a3,three dogs"'], 2),
    # a quote that opens and never closes, or closes in the middle of a field of another row
    (["image,caption", "0.jpg,a", '1.jpg,"two', "2.jpg,three", "3.jpg,four"], 3),
    (["image,caption", "0.jpg,a", '1.jpg,"two', '2.jpg,"three, four"'], 3),
    (["image,caption", '0.jpg,"a', 'b",c', '1.jpg,"d'], 2),
    (["image,caption", '0.jpg,"a', 'b"', '1.jpg,"d', "2.jpg,e"], 4),
    # in the middle of a field
    (["image,caption", "0.jpg,a", '1.jpg,a 5" pipe'], 3),
    (["image,caption", '0.jpg, "a, b"'], 2),
    (["image,caption", '0.jpg,"a \\"red\\" dog"'], 2),
]


@pytest.mark.parametrize(("lines", "line"), SWALLOWED)
def test_a_quote_too_much_is_reported_where_it_stands(folder, lines, line):
    write(folder / "captions.csv", lines)
    with pytest.raises(ValueError, match=rf"captions.csv, line {line}:"):
        list(read_table(folder / "captions.csv"))


def test_flickr_captions_are_read_as_strictly(folder):
    write(folder / "captions.txt", ["image,caption", "0.jpg,one", '1.jpg,"two', "2.jpg,three", '3.jpg,four"'])
    with pytest.raises(ValueError, match=r"captions.txt, line 3: one field goes over 3 lines, which look like rows"):
        load_splits(FlickrData(root=str(folder.parent), images=str(folder), annotations=str(folder / "captions.txt")))


def test_line_breaks_in_quotes_and_the_lines_of_rows(folder):
    text = 'image,caption\r\n\r\n0.jpg,"a dog,\r\nthat runs"\r\n   \r\n1.jpg,two\u2028dogs\x85here\r\n,\r\n'
    (folder / "captions.csv").write_bytes(text.encode())
    with pytest.raises(ValueError, match=r"captions.csv:7: column 'image' names no photo"):
        train(folder)
    (folder / "captions.csv").write_bytes(text[:-3].encode() + b"\r\n \r\n")
    split = load(folder)["train"]
    assert captions_by_photo(split) == {"0.jpg": ["a dog,\r\nthat runs"], "1.jpg": ["two\u2028dogs\x85here"]}
    assert split.rows["caption_ids"][:] == [["captions.csv:3"], ["captions.csv:6"]], "a row is where it begins"


def test_lines_that_end_as_on_old_macs(folder):
    (folder / "captions.csv").write_bytes(b'image,caption\r0.jpg,"a\rb"\r\r1.jpg,two\r')
    assert train(folder) == {"0.jpg": ["a\rb"], "1.jpg": ["two"]}


TSV = [
    (['0.jpg\t"a dog', '1.jpg\ttwo dogs"', '2.jpg\ta 5" pipe', '3.jpg\t"Rex" runs'], None),
    (['0.jpg\t"hello"', "1.jpg\tx"], None),
    (["0.jpg\tx", '1.jpg\t"a ""red"" dog"'], 3),
    (["0.jpg\tx", '1.jpg\t"a dog', 'that runs"'], 3),
    (['0.jpg\t"a\tb"'], 2),
]


@pytest.mark.parametrize(("lines", "line"), TSV)
def test_quotes_in_a_tsv_are_text_unless_a_program_quoted(folder, lines, line):
    write(folder / "captions.TSV", ["image\tcaption", *lines])
    if line is None:
        expected = {name: [caption] for name, _, caption in (text.partition("\t") for text in lines)}
        assert train(folder, "captions.TSV") == expected
    else:
        with pytest.raises(ValueError, match=rf"captions.TSV, line {line}:"):
            train(folder, "captions.TSV")


def test_a_tsv_that_is_quoted_as_a_whole(folder):
    write(folder / "captions.tsv", ['"image"\t"caption"', '"0.jpg"\t"a dog"'])
    with pytest.raises(ValueError, match=r"captions.tsv, line 1: '\"image\"' is quoted as in a CSV"):
        train(folder, "captions.tsv")


@pytest.mark.parametrize(
    ("name", "header", "message"),
    [
        ("c.csv", "image;caption", r"line 1: the columns are separated by semicolons .* expected commas in a .csv"),
        ("c.csv", "image\tcaption", "separated by tabs"),
        ("c.csv", "image|caption", "separated by bars"),
        ("c.tsv", "image,caption", "separated by commas .* expected tabs in a .tsv"),
        ("c.csv", "sep=;", "separated by semicolons"),
        ("c.csv", '"image";"caption"', "separated by semicolons"),  # write.csv2 of R
        ("c.csv", "image,caption,image", "'image' occurs 2 times"),
    ],
)
def test_other_separators_are_named(folder, name, header, message):
    write(folder / name, [header, "0.jpg"])
    with pytest.raises(ValueError, match=message):
        train(folder, name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,caption\n0.jpg,Café\n".encode("utf-16"), "line 1: byte 0xff is not UTF-8; convert .* which is UTF-16"),
        ("image,caption\n0.jpg,x\n".encode("utf-16le"), "line 1: a zero byte, which no text has"),
        (b"image,caption\n0.jpg,a\0b\n", "captions.csv, line 2: a zero byte"),
    ],
)
def test_what_is_no_text_is_told(folder, content, message):
    (folder / "captions.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        train(folder)


# JSON -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        [{"image": "0.jpg", "caption": "a"}, {"image": "1.jpg", "caption": ["b", "c"]}],
        {"image": ["0.jpg", "1.jpg"], "caption": ["a", ["b", "c"]]},
        {"image": {"0": "0.jpg", "1": "1.jpg"}, "caption": {"0": "a", "1": ["b", "c"]}},
    ],
)
@pytest.mark.parametrize("name", ["captions.json", "METADATA.JSON"])
def test_json_tables(folder, name, content):
    (folder / name).write_text(json.dumps(content, indent=1))
    assert train(folder, None) == {"0.jpg": ["a"], "1.jpg": ["b", "c"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"image": ["0.jpg"], "caption": []}', "expected a list of objects, one per row, or .*orient='records'"),
        ('{"image": {"0": "0.jpg"}, "caption": {"1": "x"}}', "expected a list of objects"),
        ('{"images": [], "annotations": [{}], "info": {}}', "these are COCO captions, which data.source: coco reads"),
        ('[{"image": "0.jpg", "caption": "x"}, 3]', "entry 1: expected an object with columns as keys, got '3'"),
        ('"x"', "expected a list of objects"),
        ("", "the file is empty"),
        ("[" * 100_000, "t.json, line 1: JSON that is nested too deeply"),
        ('[{"image": "0.jpg",\n "caption": ' + "9" * 5000 + "}]", "t.json, line 1: JSON that cannot be read .*4300"),
        ('[{"image": "0.jpg", "caption": "\\ud800"}]', r"t.json\[0\], column 'caption': '\\ud800' is half of a char"),
        ('[{"image": "\\ud800.jpg", "caption": "x"}]', r"t.json\[0\]: column 'image': '\\ud800' is half of a char"),
    ],
)
def test_json_that_is_no_table(folder, content, message):
    (folder / "t.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        train(folder, "t.json")


def test_json_lines_that_cannot_be_read(folder):
    for bad in ("[" * 100_000, '{"a": ' + "9" * 5000 + "}", '{"image"'):
        write(folder / "t.jsonl", ['{"image": "0.jpg", "caption": "x"}', "", bad])
        with pytest.raises(ValueError, match=r"t.jsonl, line 3: "):
            train(folder, "t.jsonl")


# columns and names ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        *("Image,Caption", "FILE_NAME,Alt", "img_path,alt_text", "image_name,comment", "path,caption_text"),
        *("Image Path,Alt Text", "file-name,alt-text", " image , caption "),
    ],
)
def test_columns_are_known_by_usual_names_in_either_case(folder, header):
    write(folder / "captions.csv", [header, "0.jpg,a dog"])
    assert train(folder) == {"0.jpg": ["a dog"]}


def test_columns_beside_captions_are_none(folder):
    write(folder / "captions.csv", ["image,caption_1,caption_2,caption_id,caption_number", "0.jpg,a,b,17,2"])
    assert train(folder) == {"0.jpg": ["a", "b"]}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("https://a.org/0.jpg", "URL.* img2dataset"),
        ("s3://bucket/0.jpg", "is a URL"),
        ("C:\\photos\\0.jpg", "is a path of a Windows machine; write paths below the photo folder, such as 0.jpg"),
        ("\\\\server\\photos\\0.jpg", "is a path of a Windows machine"),
    ],
)
def test_photos_that_are_elsewhere(folder, name, message):
    for header in ("image,caption", "url,caption") if "://" in name else ("image,caption",):
        write(folder / "captions.csv", [header, f"{name},a dog"])
        with pytest.raises(ValueError, match=rf"(?s)captions.csv.*{message}"):
            train(folder)


COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(("written", "stored"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)])
def test_names_in_either_unicode_form(folder, written, stored):
    file = photo(folder / stored / f"{stored}.jpg")
    write(folder / "captions.csv", ["image,caption", f"{written}/{written}.jpg,a", f"{stored}/{stored}.jpg,b"])
    split = load(folder)["train"]
    assert image_ids_of(split) == [str(file)]
    assert captions_by_photo(split) == {f"{COMPOSED}/{COMPOSED}.jpg": ["a", "b"]}
    os.rename(file, file.with_name(f"{written}.jpg"))
    assert image_ids_of(load(folder)["train"]) == [str(file.with_name(f"{written}.jpg"))], "the rows are from the cache"


def test_two_files_of_one_name_in_two_forms(folder):
    for name in (COMPOSED, DECOMPOSED):
        photo(folder / f"{name}.jpg")
    write(folder / "captions.csv", ["image,caption", f"{DECOMPOSED}.jpg,a"])
    assert image_ids_of(load(folder)["train"]) == [str(folder / f"{DECOMPOSED}.jpg")], (
        "a name that is there is that file"
    )
    write(folder / "captions.csv", ["image,caption", f"{DECOMPOSED}.jpg,a", f"{COMPOSED}.jpg,b"])
    with pytest.raises(ValueError, match=r"captions.csv:3: photo .* but was .* before"):
        train(folder)


def test_backslashes_in_names(folder):
    write(folder / "captions.csv", ["image,caption", ".\\sub\\0.jpg,a", "sub/0.jpg,b", "gone\\1.jpg,c"])
    with pytest.raises(ValueError, match=r"photos/gone/1\.jpg"):
        train(folder)
    split = load(folder, skip_missing=True)["train"]
    assert captions_by_photo(split) == {"sub/0.jpg": ["a", "b"]}
    assert image_ids_of(split) == [str(folder / "sub" / "0.jpg")]
    file = photo(folder / "a\\b.jpg")
    write(folder / "captions.csv", ["image,caption", "a\\b.jpg,a"])
    assert image_ids_of(load(folder)["train"]) == [str(file)], "an archive unpacked without its folders"


# rows without photo or caption, small folders -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["deque", "dict_values", "frozenset", "pd.Index", "np.array"])
@pytest.mark.parametrize("inner", ["['a dog', 'two dogs']", "{'a dog'}", "( 'a dog',)"])
def test_containers_of_python_in_a_cell_are_no_captions(folder, name, inner):
    with (folder / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["image", "caption"], ["0.jpg", f"{name}({inner})"]])
    with pytest.raises(ValueError, match=r"captions.csv:2, column 'caption': .* looks like a list, but is none"):
        train(folder)


def test_a_photo_id_that_is_null(folder):
    row = {"image": "0.jpg", "caption": "a", "image_id": None, "caption_ids": ["1"]}
    write(folder / "captions.json", [json.dumps([row])])
    with pytest.raises(ValueError, match=r"captions.json\[0\]: column 'image_id' is empty"):
        train(folder, "captions.json")


def test_rows_without_photo_or_caption(folder):
    lines = [{"image": "0.jpg", "caption": "a"}, {"image": None, "caption": "b"}, {"image": "1.jpg", "caption": None}]
    lines += [{"image": "2.jpg", "caption": "\ud800"}, {"caption": "c"}]
    write(folder / "t.jsonl", [json.dumps(line) for line in lines])
    with pytest.raises(ValueError, match=r"t.jsonl:2: column 'image' names no photo"):
        train(folder, "t.jsonl")
    split = load(folder, "t.jsonl", skip_broken=True)["train"]
    assert captions_by_photo(split) == {"0.jpg": ["a"]}
    left_out = {item for item, _, _ in split.skipped}
    assert left_out == {"photo t.jsonl:2", "photo t.jsonl:5", "t.jsonl:3", "t.jsonl:4"}
    write(folder / "t.jsonl", [json.dumps(lines[0]), json.dumps(lines[2])])
    with pytest.raises(ValueError, match=r"1 empty caption \(t.jsonl:2\)"):
        train(folder, "t.jsonl")


def test_a_folder_too_small_for_its_fractions(folder):
    write(folder / "captions.csv", ["image,caption", *(f"{number}.jpg,x" for number in range(4))])
    with pytest.raises(ValueError, match=r"4 photos are too few .* none falls to val. Set data.val_fraction higher"):
        load(folder, val_fraction=0.01)
    with pytest.raises(ValueError, match=r"none falls to train. Set data.test_fraction lower"):
        load(folder, val_fraction=0.01, test_fraction=0.98)
    assert set(load(folder, val_fraction=0, test_fraction=0.01)) == {"train"}


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([{"id": None, "file_name": "42.jpg"}], r"images\[0\]: not as in a COCO captions file \(id is None\)"),
        ([{"id": 42}], r"images\[0\]: not as in a COCO captions file \(no 'file_name'\)"),
        ([{"id": 42, "file_name": 42}], r"images\[0\]: not as in a COCO captions file \(file_name is 42\)"),
    ],
)
def test_coco_photos_without_what_they_need(tmp_path, images, message):
    (tmp_path / "captions_train2017.json").write_text(json.dumps({"images": images, "annotations": []}))
    with pytest.raises(ValueError, match=message):
        load_splits(CocoData(root=str(tmp_path), cache_dir=str(tmp_path / "cache")))


def test_coco_ids_as_text(tmp_path):
    photo(tmp_path / "train2017" / "000000000042.jpg")
    content = {
        "images": [{"id": "42", "file_name": "000000000042.jpg"}],
        "annotations": [{"id": "7", "image_id": 42.0, "caption": "a"}, {"id": 8, "image_id": "042", "caption": None}],
    }
    (tmp_path / "captions_train2017.json").write_text(json.dumps(content))
    data = CocoData(root=str(tmp_path), cache_dir=str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"1 empty caption \(8\)"):
        load_splits(data)
    split = load_splits(data.model_copy(update={"skip_broken": True}))["train"]
    assert captions_by_photo(split) == {"42": ["a"]}
    content["annotations"][0]["caption"] = 7
    (tmp_path / "captions_train2017.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"annotations\[0\] \(photo 42\): expected a caption .*, got \[7\]"):
        load_splits(data)


# captions to be indexed -----------------------------------------------------------------------------------------------


def test_captions_of_a_file_are_known_by_what_they_say(tmp_path):
    file = write(tmp_path / "c.txt", ["a dog", "", "['two dogs', 'a dog']"])
    assert list(read_caption_file(file).values()) == ["a dog", "two dogs", "a dog"]
    before = read_caption_file(file)
    write(file, ["a horse", "", "a dog", "['two dogs', 'a dog']"])
    assert before.items() < read_caption_file(file).items()
    assert list(before) == [caption_id("a dog"), caption_id("two dogs"), caption_id("a dog", 2)]
    write(tmp_path / "c.csv", ["caption", "\"['a', 'b\""])
    with pytest.raises(ValueError, match=r"c.csv:2, column 'caption': .* looks like a list"):
        read_caption_file(tmp_path / "c.csv")


def test_rows_that_go_over_lines_do_not_hide_notes(folder):
    write(folder / "captions.csv", ["image,caption", "0.jpg,x", "1.jpg,y"])
    write(folder / "t.txt", ["0.jpg", "", " "])
    assert notes(load(folder, split_files={"train": "t.txt"})["train"]) == ["captions.csv: 1 photo is in no split file"]
