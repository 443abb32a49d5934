"""Every reader of captions against random rows: what csv, pandas and json write comes back, or is refused by line."""

import csv
import io
import json
import os
import re
import tempfile
from pathlib import Path

import datasets
import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from clip_itm.data.caption_file import read_caption_file
from clip_itm.data.configuration import FolderData, HubData
from clip_itm.data.formats.cells import CALL, captions_of, list_of
from clip_itm.data.formats.karpathy import read_karpathy
from clip_itm.data.formats.scan_split import read_scan_split
from clip_itm.data.formats.splits import read_split_files
from clip_itm.data.formats.tables import read_table
from clip_itm.data.load import load_splits
from clip_itm.data.noise_import import import_noise
from clip_itm.data.rows import Pairs
from clip_itm.data.sources.cc120k import read_tsv
from clip_itm.data.sources.coco import read_official
from clip_itm.data.sources.flickr import read_token_file
from clip_itm.data.sources.folder import FolderImages
from support.data_folders import make_pairs, photo

SPECIAL = list(" \t,;|\"'[](){}\n\r\\#\u0085\u2028\ufeffaé\U0001f600-1:")
TEXT = st.text(st.one_of(st.sampled_from(SPECIAL), st.characters(codec="utf-8", exclude_characters="\0")), max_size=12)
LINE = TEXT.map(lambda text: re.sub("[\n\r\t]", " ", text).strip())  # what a format of lines can hold
CAPTIONS = st.lists(TEXT, min_size=1, max_size=5)
NAMES_A_PLACE = re.compile(r"(line |:|entry |\[|row )\d+")
TRIES = int(os.environ.get("CLIP_ITM_FUZZ", "100"))
fuzz = settings(max_examples=TRIES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def attempt(read):
    """What `read` gives, and its refusal."""
    try:
        return read(), None
    except ValueError as error:
        return None, str(error)


def read_or_refused(read, expected) -> bool:
    """Whether `read` gives what was written; a refusal has to name the line."""
    found, refusal = attempt(read)
    assert found == expected if refusal is None else NAMES_A_PLACE.search(refusal), refusal
    return refusal is None


def without_lists(captions: list[str]) -> list[str] | None:
    """The captions as texts, None where one of them is a list to this package (those are tested by themselves)."""
    try:
        return captions if all(list_of(caption, "") is caption for caption in captions) else None
    except ValueError:
        return None


# tables ---------------------------------------------------------------------------------------------------------------


def values_of(path: Path) -> list[tuple]:
    return [tuple(values.values()) for _, values in read_table(path)]


def written_by_csv(rows: list[tuple], **dialect) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, **dialect).writerows([("image", "caption", "split"), *rows])
    return text.getvalue()


def lines_like_rows(captions: list[str]) -> bool:
    """Whether a quoted field goes over lines that could be rows: only then is a CSV refused."""
    return any("," in line for caption in captions for line in caption.split("\n")[1:])


ROWS = st.lists(TEXT, min_size=1, max_size=6).map(
    lambda captions: [(f"{number}.jpg", caption, "train") for number, caption in enumerate(captions)]
)


@fuzz
@given(
    ROWS,
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
)
@example([("0.jpg", "\n", "train")], csv.QUOTE_MINIMAL, "\n", False)
@example([("0.jpg", "a dog\nruns, fast", "train")], csv.QUOTE_MINIMAL, "\n", False)
def test_csv_of_the_csv_module(place, rows, quoting, end, marked):
    text = written_by_csv(rows, quoting=quoting, lineterminator=end)
    (place / "t.csv").write_bytes(text.encode("utf-8-sig" if marked else "utf-8"))
    was_read = read_or_refused(lambda: values_of(place / "t.csv"), rows)
    if not lines_like_rows([caption for _, caption, _ in rows]):
        assert was_read


@fuzz
@given(ROWS, st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]), st.sampled_from(["\n", "\r\n"]))
def test_tsv_of_the_csv_module_is_never_read_as_another_text(place, rows, quoting, end):
    text = written_by_csv(rows, quoting=quoting, lineterminator=end, delimiter="\t")
    (place / "t.tsv").write_bytes(text.encode())
    was_read = read_or_refused(lambda: values_of(place / "t.tsv"), rows)
    if quoting == csv.QUOTE_MINIMAL and not any(set('"\t\n\r') & set(caption) for _, caption, _ in rows):
        assert was_read


@fuzz
@given(st.lists(LINE, min_size=1, max_size=6))
def test_tsv_without_quoting(place, captions):
    rows = [(f"{number}.jpg", caption, "train") for number, caption in enumerate(captions)]
    frame = pd.DataFrame(rows, columns=["image", "caption", "split"])
    frame.to_csv(place / "t.tsv", sep="\t", quoting=csv.QUOTE_NONE, index=False)
    was_read = read_or_refused(lambda: values_of(place / "t.tsv"), rows)
    if not any('""' in caption for caption in captions):
        assert was_read, "quotes in a TSV are text"


@fuzz
@given(ROWS, st.sampled_from(["t.csv", "t.tsv", "t.jsonl", "records.json", "columns.json", "lists.json"]))
def test_tables_of_pandas(place, rows, name):
    frame = pd.DataFrame(rows, columns=["image", "caption", "split"])
    path = place / name
    if name == "t.csv":
        frame.to_csv(path, index=False)
    elif name == "t.tsv":
        frame.to_csv(path, sep="\t", index=False)
    elif name == "lists.json":
        path.write_text(json.dumps(frame.to_dict("list")), encoding="utf-8")
    else:
        orient = "columns" if name == "columns.json" else "records"
        frame.to_json(path, orient=orient, lines=name == "t.jsonl")
    was_read = read_or_refused(lambda: values_of(path), rows)
    assert was_read or name in ("t.csv", "t.tsv")


@fuzz
@given(ROWS, st.booleans(), st.lists(st.sampled_from(["", "  ", "\t"]), max_size=3))
def test_json_lines(place, rows, ascii_only, blanks):
    keys = ("image", "caption", "split")
    lines = [json.dumps(dict(zip(keys, row, strict=True)), ensure_ascii=ascii_only) for row in rows]
    (place / "t.jsonl").write_text("\n".join([*blanks, *lines, *blanks]), encoding="utf-8")
    assert values_of(place / "t.jsonl") == rows
    assert next(where for where, _ in read_table(place / "t.jsonl")) == f"t.jsonl:{len(blanks) + 1}"


@fuzz
@given(ROWS, st.data())
def test_a_quote_put_in_anywhere_swallows_no_row(place, rows, data):
    """A CSV of one-line rows with a quote too much in one or two places: read with that quote as text, or refused."""
    rows = [(image, re.sub('[",\n\r]', " ", caption), split) for image, caption, split in rows]
    lines = [",".join(row) for row in rows]
    for _ in range(data.draw(st.integers(1, 2))):
        number = data.draw(st.integers(0, len(lines) - 1))
        at = data.draw(st.integers(0, len(lines[number])))
        lines[number] = lines[number][:at] + '"' + lines[number][at:]
    (place / "t.csv").write_text("\n".join(["image,caption,split", *lines]) + "\n", encoding="utf-8", newline="")
    found, refusal = attempt(lambda: values_of(place / "t.csv"))
    assert len(found) == len(rows) if refusal is None else NAMES_A_PLACE.search(refusal)


@fuzz
@given(st.lists(LINE.filter(bool), min_size=1, max_size=6), st.data())
def test_stray_quotes_in_a_tsv_are_text(place, captions, data):
    number = data.draw(st.integers(0, len(captions) - 1))
    captions = [caption.replace('"', "") for caption in captions]
    captions[number] = data.draw(st.sampled_from(['"' + captions[number], captions[number] + '"', '5" pipe']))
    rows = [(f"{number}.jpg", caption) for number, caption in enumerate(captions)]
    text = "".join(f"{image}\t{caption}\n" for image, caption in [("image", "caption"), *rows])
    (place / "t.tsv").write_text(text, encoding="utf-8", newline="")
    assert values_of(place / "t.tsv") == rows


# lists in cells -------------------------------------------------------------------------------------------------------


@fuzz
@given(st.lists(TEXT, max_size=4), st.sampled_from(["repr", "json", "json ascii", "tuple"]))
def test_lists_in_cells_come_back(captions, how):
    cell = {
        "repr": repr,
        "json": lambda found: json.dumps(found, ensure_ascii=False),
        "json ascii": json.dumps,
        "tuple": lambda found: repr(tuple(found)),
    }[how](captions)
    assert captions_of(cell, "row 1") == captions


@fuzz
@given(st.lists(TEXT, min_size=2, max_size=4))
def test_lists_of_numpy_are_refused(captions):
    import numpy as np

    with pytest.raises(ValueError, match="row 1: "):
        captions_of(str(np.array(captions, dtype=object)), "row 1")


@fuzz
@given(
    TEXT, st.sampled_from(["[untitled] a dog", "[1] dogs", "[a dog, two dogs]", "(left) a man", '("Rex") a dog', "{x}"])
)
def test_texts_that_begin_with_a_bracket_stay_texts(text, begins):
    caption = f"{begins} on a beach {text}"
    assert captions_of(caption, "row 1") == [caption]


@fuzz
@given(TEXT)
def test_a_cell_is_itself_or_a_list_or_refused(text):
    found, refusal = attempt(lambda: list_of(text, "row 1"))
    begins = text.strip()[:1]
    if refusal is None:
        assert found == text or begins in ("[", "(")
    else:
        assert refusal.startswith("row 1: ")
        assert begins in ("[", "(", "{") or re.match(CALL, text.strip())


@fuzz
@given(st.lists(CAPTIONS, min_size=1, max_size=4), st.sampled_from(["t.csv", "t.jsonl"]))
def test_lists_of_pandas_as_a_folder(place, captions, name):
    frame = pd.DataFrame({"image": [f"{number}.jpg" for number in range(len(captions))], "captions": captions})
    frame.to_csv(place / name, index=False) if name == "t.csv" else frame.to_json(
        place / name, orient="records", lines=True
    )
    data = FolderData(root=str(place), captions=name, cache_dir=str(place / "cache"), val_fraction=0, test_fraction=0)
    expected = [[caption.strip() for caption in own] for own in captions]
    assert read_or_refused(lambda: [row["captions"] for row in FolderImages(data).split_rows()["train"]], expected)


# published layouts ----------------------------------------------------------------------------------------------------


@fuzz
@given(CAPTIONS)
def test_flickr_csv(place, captions):
    text = io.StringIO(newline="")
    csv.writer(text).writerows([("image", "caption"), *(("0.jpg", caption) for caption in captions)])
    (place / "captions.txt").write_bytes(text.getvalue().encode())
    ids = [f"0.jpg#{number}" for number in range(len(captions))]
    was_read = read_or_refused(lambda: read_token_file(place / "captions.txt"), {"0.jpg": (captions, ids)})
    if not lines_like_rows(captions):
        assert was_read


@fuzz
@given(st.lists(LINE, min_size=1, max_size=5), LINE.filter(bool), st.sampled_from(["\n", "\r\n"]))
def test_flickr_token_file(place, captions, name, end):
    lines = [f"{name}#{number}\t{caption}" for number, caption in enumerate(captions)]
    (place / "x.token").write_bytes(end.join([*lines, "", ""]).encode())
    ids = [f"{name}#{number}" for number in range(len(captions))]
    assert read_token_file(place / "x.token") == {name.removeprefix("\ufeff"): (captions, ids)} or "\ufeff" in name


@fuzz
@given(CAPTIONS, st.sampled_from([int, str]), st.sampled_from([int, str]), st.booleans())
def test_coco(place, captions, image_id, caption_id, ascii_only):
    content = {
        "images": [{"id": image_id(42), "file_name": "000000000042.jpg"}],
        "annotations": [
            {"id": caption_id(number), "image_id": 42, "caption": caption} for number, caption in enumerate(captions)
        ],
    }
    (place / "coco.json").write_text(json.dumps(content, ensure_ascii=ascii_only), encoding="utf-8")
    (row,) = read_official(place / "coco.json", place)
    assert row["image_id"] == "42"
    assert row["captions"] == [caption.strip() for caption in captions]
    assert row["caption_ids"] == [str(number) for number in range(len(captions))]


@fuzz
@given(CAPTIONS, st.booleans())
def test_karpathy(place, captions, ascii_only):
    sentences = [{"raw": caption, "sentid": number} for number, caption in enumerate(captions)]
    content = {"images": [{"filename": "a.jpg", "split": "restval", "sentences": sentences}]}
    (place / "dataset.json").write_text(json.dumps(content, ensure_ascii=ascii_only), encoding="utf-8")
    (row,) = read_karpathy(place / "dataset.json", lambda image: (image["filename"], "a"))["train"]
    assert row["captions"] == [caption.strip() for caption in captions]


@fuzz
@given(st.lists(LINE, min_size=1, max_size=6), st.sampled_from(["\n", "\r\n"]))
def test_scan_split(place, captions, end):
    captions[-1] = captions[-1] or "x"  # blank lines at the end of a file are none
    (place / "ids.txt").write_bytes(end.join(str(number) for number in range(len(captions))).encode())
    (place / "caps.txt").write_bytes((end.join(captions) + end).encode())
    found = [photo.captions for photo in read_scan_split(place / "ids.txt", place / "caps.txt", 5)]
    assert found == [[caption] for caption in captions] or captions[0].startswith("\ufeff")


@fuzz
@given(st.lists(LINE.filter(bool), min_size=1, max_size=6), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_cc120k(place, captions, end, blank):
    lines = [f"{caption}\t{number}.jpg" for number, caption in enumerate(captions)]
    (place / "train.tsv").write_bytes(((end * 2 if blank else end).join(lines) + end).encode("utf-8-sig"))
    step = 2 if blank else 1
    expected = [(number * step + 1, caption, f"{number}.jpg") for number, caption in enumerate(captions)]
    assert read_tsv(place / "train.tsv") == expected


# captions without photos, noise, splits, Hub --------------------------------------------------------------------------


@fuzz
@given(st.lists(TEXT, min_size=1, max_size=6), st.sampled_from(["c.txt", "c.csv", "c.tsv", "c.jsonl", "c.json"]))
def test_files_of_captions(place, captions, name):
    captions = [caption.strip() for caption in captions]
    if name == "c.txt":
        captions = [re.sub("[\n\r]", " ", caption).strip() for caption in captions]
        (place / name).write_text("".join(f"{caption}\n" for caption in captions), encoding="utf-8-sig", newline="")
        captions = [caption for caption in captions if caption]
    else:
        frame = pd.DataFrame({"id": range(len(captions)), "caption": captions})
        if name.startswith("c.json"):
            frame.to_json(place / name, orient="records", lines=name == "c.jsonl")
        else:
            frame.to_csv(place / name, sep="," if name == "c.csv" else "\t", index=False)
    if without_lists(captions) is not None and all(captions) and captions:
        was_read = read_or_refused(lambda: list(read_caption_file(place / name).values()), captions)
        assert was_read or name in ("c.csv", "c.tsv")


@fuzz
@given(st.lists(st.lists(LINE, min_size=1, max_size=3), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_noise_files(place, captions, random):
    pairs = make_pairs([len(own) for own in captions])
    flat = [caption for own in captions for caption in own]
    pairs = Pairs(pairs.image, datasets.table.pa.array(flat), pairs.caption_ids, pairs.image_ids)
    noisy = list(flat)
    random.shuffle(noisy)
    (place / "noise.txt").write_text("".join(f"{line}\n" for line in noisy), encoding="utf-8-sig", newline="")
    if noisy[-1]:
        source = import_noise(place / "noise.txt", pairs).source
        assert [flat[k] for k in source] == noisy


@fuzz
@given(st.lists(LINE.filter(bool), min_size=1, max_size=6, unique=True), st.booleans())
def test_split_files(place, names, blank):
    half = len(names) // 2
    between = "\n \n" if blank else "\n"
    for file, own in (("t.txt", names[:half]), ("v.txt", names[half:])):
        (place / file).write_text(between.join(own) + "\n", encoding="utf-8-sig", newline="")
    files = {"train": place / "t.txt", "val": place / "v.txt"} if half else {"val": place / "v.txt"}
    expected = dict.fromkeys(names[:half], "train") | dict.fromkeys(names[half:], "val")
    assert read_split_files(files) == expected


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.lists(TEXT, min_size=1, max_size=3), min_size=1, max_size=4), st.sampled_from(["list", "rows", "repr"])
)
def test_hub_columns(place, captions, how):
    files = [photo(place / f"{number}.png", number) for number in range(len(captions))]
    rows = [{"image": str(file), "caption": own} for file, own in zip(files, captions, strict=True)]
    if how == "repr":
        rows = [{**row, "caption": repr(row["caption"])} for row in rows]
    elif how == "rows":
        if any(without_lists(own) is None for own in captions):
            return
        rows = [{**row, "caption": caption} for row in rows for caption in row["caption"]]
    with tempfile.TemporaryDirectory() as folder:
        datasets.Dataset.from_list(rows).save_to_disk(folder)
        data = HubData(path=folder, val_fraction=0, test_fraction=0, cache_dir=str(place / "cache"))
        found = load_splits(data, verify=False)["train"].rows["captions"][:]
    assert found == [[caption.strip() for caption in own] for own in captions]
