"""`clip-itm audit --write`: tables, tasks and samples that other programs read, as they read them."""

import csv
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from PIL import Image

from clip_itm import audit
from clip_itm.auditing.csv_file import write_csv
from clip_itm.auditing.label_studio import write_tasks
from clip_itm.auditing.rows import AT_ONCE
from clip_itm.cli import main
from clip_itm.data.marks import Mark, pair_hash, read_marks
from support.tiny import save_tiny_model

HOSTILE = ['=cmd|" /C calc"!A0', "@SUM(1;2)", "-1+1", "+1", "'tis", "\t=1", '<b>"x"</b>, ü\n$image {{ 7 }}']


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """`model`, tiny and random, and `photos`: 24 of them in a folder of a strange name, one or two captions each."""
    folder = tmp_path_factory.mktemp("formats")
    save_tiny_model(folder)
    photos = folder / "photos" / "a b&é#1"
    photos.mkdir(parents=True)
    generator, rows = np.random.default_rng(0), []
    for number in range(24):
        Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(photos / f"{number:02d}.png")
        captions = [f"photo {number}", HOSTILE[number % len(HOSTILE)] + f" {number}"][: 1 + number % 2]
        rows.append({"file_name": f"a b&é#1/{number:02d}.png", "captions": captions, "split": "train"})
    (folder / "photos" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(place: Path, *words: str) -> int:
    cache = ["--data.cache_dir", str(place / "cache")]
    return main(["audit", str(place / "photos"), "--model", str(place / "model"), *cache, *words])


@pytest.fixture(scope="module")
def written(place, tmp_path_factory) -> Path:
    """The folder of an audit in all formats."""
    out = tmp_path_factory.mktemp("written") / "audit"
    assert run(place, "--out", str(out), "--write", "csv", "label-studio", "fiftyone") == 0
    return out


def table_of(out: Path) -> list[dict]:
    return pq.read_table(out / "audit.parquet").to_pylist()


# CSV ------------------------------------------------------------------------------------------------------------------


def unescaped(text: str) -> str:
    return text[1:] if text.startswith("'") else text


def test_csv_has_every_pair_and_no_formula(written):
    with (written / "audit.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, strict=True))
    expected = table_of(written)
    assert len(rows) == len(expected) == 36
    for row, wanted in zip(rows, expected, strict=True):
        assert unescaped(row["caption"]) == wanted["caption"]
        assert not row["caption"].startswith(("=", "+", "-", "@", "\t"))
        assert float(row["clean_probability"]) == pytest.approx(wanted["clean_probability"], abs=1e-6)
        assert row["known_wrong"] == ""
        assert row["trained_on"] == "false"
    assert {row["caption"][0] for row in rows} > {"'", "p"}
    content = (written / "audit.csv").read_bytes()
    assert content.count(b"\r\n") == 37
    assert not content.startswith(b"\xef\xbb\xbf")


def test_csv_is_read_by_pandas(written):
    pandas = pytest.importorskip("pandas")
    found = pandas.read_csv(written / "audit.csv")
    assert [unescaped(text) for text in found["caption"]] == [row["caption"] for row in table_of(written)]
    assert found["rank"].tolist() == list(range(1, 37))


def test_csv_of_columns_that_come_later(tmp_path):
    count = AT_ONCE + 3
    table = pa.table(
        {
            "caption": ["=1"] + ["a"] * (count - 1),
            "groups": [["leak", "ü"]] + [None] * (count - 1),
            "score_x": pa.array([-0.5] + [0.25] * (count - 1), pa.float32()),
        }
    )
    write_csv(tmp_path / "a.csv", table)
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, strict=True))
    assert len(rows) == count
    assert rows[0]["caption"] == "'=1"
    assert json.loads(rows[0]["groups"]) == ["leak", "ü"]
    assert rows[0]["score_x"] == "-0.5", "a number below 0 is a number"
    assert rows[-1] == {"caption": "a", "groups": "", "score_x": "0.25"}


def test_csv_of_no_pair_has_its_header(tmp_path):
    write_csv(tmp_path / "a.csv", pa.table({"caption": pa.array([], pa.string()), "rank": pa.array([], pa.int64())}))
    assert (tmp_path / "a.csv").read_bytes() == b'"caption","rank"\r\n'


# Label Studio ---------------------------------------------------------------------------------------------------------


def test_tasks_name_the_photos_and_predict(written, place):
    tasks = json.loads((written / "label-studio/tasks-0001.json").read_text(encoding="utf-8"))
    for task, row in zip(tasks, table_of(written), strict=True):
        data, (prediction,) = task["data"], task["predictions"]
        assert data["caption"] == row["caption"]
        assert data["pair_hash"] == pair_hash(row["image_id"], row["caption"])
        assert data["clean_probability"] == pytest.approx(row["clean_probability"], abs=1e-6)
        assert data["image"].startswith("/data/local-files/?d=")
        (result,) = prediction["result"]
        is_right = row["clean_probability"] >= 0.5
        assert result["value"] == {"choices": ["right" if is_right else "wrong"]}
        assert 0.5 <= prediction["score"] <= 1
    readme = (written / "label-studio/README.txt").read_text(encoding="utf-8")
    root = next(line for line in readme.splitlines() if "DOCUMENT_ROOT=" in line).split("DOCUMENT_ROOT=")[1]
    root = Path(root.removesuffix(" label-studio start"))
    from urllib.parse import parse_qs, urlsplit

    files = {root / parse_qs(urlsplit(task["data"]["image"]).query)["d"][0] for task in tasks}
    assert files == set((place / "photos/a b&é#1").iterdir())
    storage = place / "photos/a b&é#1"
    assert f"   {storage}\n" in readme
    assert root in storage.parents, "Label Studio refuses a storage that is the document root itself"


def test_the_interface_fits_the_tasks(written):
    tasks = json.loads((written / "label-studio/tasks-0001.json").read_text(encoding="utf-8"))
    config = ET.parse(written / "label-studio/labeling.xml").getroot()
    objects = {tag.get("name"): tag.get("value").removeprefix("$") for tag in config if tag.tag in ("Image", "Text")}
    assert set(objects.values()) == {"image", "caption"}
    controls = {tag.get("name"): tag for tag in config if tag.get("toName")}
    assert {tag.get("toName") for tag in controls.values()} <= set(objects)
    for task in tasks:
        assert set(objects.values()) <= set(task["data"])
        for result in task["predictions"][0]["result"]:
            choices = [choice.get("value") for choice in controls[result["from_name"]]]
            assert set(result["value"]["choices"]) <= set(choices)


def test_label_studio_itself_accepts_tasks_and_interface(written):
    interface = pytest.importorskip("label_studio_sdk.label_interface")
    config = interface.LabelInterface((written / "label-studio/labeling.xml").read_text(encoding="utf-8"))
    config.validate()
    for task in json.loads((written / "label-studio/tasks-0001.json").read_text(encoding="utf-8")):
        assert config.validate_task({"data": task["data"]})
        assert [config.validate_prediction(prediction, return_errors=True) for prediction in task["predictions"]] == [
            []
        ]


def test_many_tasks_are_several_files(tmp_path, monkeypatch):
    monkeypatch.setattr("clip_itm.auditing.label_studio.TASKS", 2)
    table = pa.table(
        {"image_id": ["a"] * 5, "caption": list("vwxyz"), "clean_probability": [0.1] * 5, "photo_number": [0] * 5}
    )
    write_tasks(tmp_path, table, ["/data/photos/a.jpg"], 0.5, "a judge")
    names = sorted(tmp_path.glob("tasks-*.json"))
    assert [len(json.loads(name.read_text(encoding="utf-8"))) for name in names] == [2, 2, 1]


def test_photos_of_two_disks_have_a_storage_each(tmp_path):
    table = pa.table(
        {"image_id": list("ab"), "caption": list("ab"), "clean_probability": [0.1, 0.9], "photo_number": [0, 1]}
    )
    write_tasks(tmp_path, table, ["/disk1/x/a.jpg", "/disk2/b.jpg"], 0.5, "a judge")
    readme = (tmp_path / "README.txt").read_text(encoding="utf-8")
    assert "DOCUMENT_ROOT=/ " in readme
    assert "   /disk1\n   /disk2\n" in readme
    tasks = json.loads((tmp_path / "tasks-0001.json").read_text(encoding="utf-8"))
    assert tasks[0]["data"]["image"] == "/data/local-files/?d=disk1/x/a.jpg"


def annotated(task: dict, time: str, *, mark: str | None = None, text: str | None = None, **more) -> dict:
    """A task as Label Studio exports it."""
    result = []
    if mark is not None:
        result.append({"from_name": "mark", "to_name": "photo", "type": "choices", "value": {"choices": [mark]}})
    if text is not None:
        result.append({"from_name": "text", "to_name": "photo", "type": "textarea", "value": {"text": [text]}})
    annotation = {"id": 1, "completed_by": {"id": 4, "email": "ana@here"}, "result": result, "updated_at": time, **more}
    return {"id": 9, **task, "annotations": [annotation]}


def test_an_export_of_label_studio_is_a_file_of_marks(written, tmp_path):
    tasks = json.loads((written / "label-studio/tasks-0001.json").read_text(encoding="utf-8"))
    export = [
        annotated(tasks[0], "2026-01-05T00:00:00Z", mark="wrong"),
        annotated(tasks[1], "2026-01-04T00:00:00Z", mark="wrong", text=" a red\nmug "),
        annotated(tasks[2], "2026-01-03T00:00:00Z", mark="right", completed_by=7),
        annotated(tasks[3], "2026-01-02T00:00:00Z", was_cancelled=True),
        annotated(tasks[4], "2026-01-01T00:00:00Z"),
        tasks[5],
    ]
    (tmp_path / "export.json").write_text(json.dumps(export))
    found = read_marks(tmp_path / "export.json")
    rows = table_of(written)
    assert [mark.mark for mark in found] == ["skipped", "right", "fixed", "wrong"], "oldest first"
    assert [mark.text for mark in found] == [None, None, "a red mug", None]
    assert [mark.author for mark in found] == ["ana@here", "7", "ana@here", "ana@here"]
    assert found[3] == Mark(
        pair=pair_hash(rows[0]["image_id"], rows[0]["caption"]),
        mark="wrong",
        image_id=rows[0]["image_id"],
        caption=rows[0]["caption"],
        author="ana@here",
        time="2026-01-05T00:00:00Z",
    )


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ('[{"data": {"image": "a.jpg"}, "annotations": []}]', "task 1 has no data.pair_hash"),
        ("[1]", "task 1 has no data.pair_hash"),
        ('[{"data": {"pair_hash": "a"}, "annotations": [', "JSON export of Label Studio"),
        (
            '[{"data": {"pair_hash": "a"}, "annotations": [{"result": [{"from_name": "mark", "value": '
            '{"choices": ["Cat"]}}]}]}]',
            "mark is 'Cat'",
        ),
    ],
)
def test_another_export_is_refused(tmp_path, content, why):
    (tmp_path / "export.json").write_text(content)
    with pytest.raises(ValueError, match=why) as error:
        read_marks(tmp_path / "export.json")
    assert "export.json" in str(error.value)


# FiftyOne -------------------------------------------------------------------------------------------------------------


def test_samples_have_a_path_and_a_label_each(written):
    paths, labels = (
        json.loads((written / f"fiftyone/{name}.json").read_text(encoding="utf-8")) for name in ("data", "labels")
    )
    assert labels["classes"] is None
    assert list(paths) == list(labels["labels"]) == [f"{rank:02d}" for rank in range(1, 37)]
    for row in table_of(written):
        name = f"{row['rank']:02d}"
        label = labels["labels"][name]
        assert Path(paths[name]).is_file()
        assert Path(paths[name]).is_absolute()
        assert label["attributes"]["caption"] == row["caption"]
        assert label["attributes"]["image_id"] == row["image_id"]
        assert label["label"] == ("right" if row["clean_probability"] >= 0.5 else "wrong")
        assert 0.5 <= label["confidence"] <= 1
        assert "known_wrong" not in label["attributes"], "nobody knows"


def test_fiftyone_itself_reads_the_samples(written):
    importers = pytest.importorskip("fiftyone.utils.data.importers")
    importer = importers.FiftyOneImageClassificationDatasetImporter(
        dataset_dir=str(written / "fiftyone"), data_path="data.json"
    )
    with importer:
        found = list(importer)
    rows = table_of(written)
    assert len(found) == len(rows)
    for (path, _, label), row in zip(found, rows, strict=True):
        assert path == row["image"]
        assert label["caption"] == row["caption"]
        assert label["clean_probability"] == pytest.approx(row["clean_probability"], abs=1e-6)


# the folder -----------------------------------------------------------------------------------------------------------


def test_the_second_run_replaces_the_first(here, place):
    for _ in range(2):
        assert run(place, "--write", "label-studio", "fiftyone", "csv") == 0
    assert sorted(path.name for path in (here / "audit").iterdir() if not path.name.startswith(".")) == [
        *("audit.csv", "audit.html", "audit.parquet", "fiftyone", "label-studio", "written.json")
    ]


@pytest.mark.parametrize(
    ("file", "format"),
    [
        ("audit.csv", "csv"),
        ("label-studio/tasks-0001.json", "label-studio"),
        ("fiftyone/mine.txt", "fiftyone"),
        ("photos/a.jpg", "fiftyone"),
    ],
)
def test_files_of_a_user_stay(here, place, capsys, file, format):
    path = here / "audit" / file
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    assert run(place, "--write", format) == 2
    assert "was written by no audit" in capsys.readouterr().err
    assert path.read_text() == "mine"
    assert not (here / "audit/audit.parquet").exists(), "refused before the work, not after it"


def test_a_file_that_a_user_adds_to_ours_stays(here, place, capsys):
    assert run(place, "--write", "label-studio") == 0
    (here / "audit/label-studio/export.json").write_text("[]")
    assert run(place, "--write", "label-studio") == 2
    assert "export.json was written by no audit" in capsys.readouterr().err
    assert (here / "audit/label-studio/tasks-0001.json").is_file()


def test_a_killed_run_leaves_the_files_of_the_one_before(here, place, monkeypatch):
    assert run(place, "--write", "fiftyone") == 0
    before = (here / "audit/fiftyone/labels.json").read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("clip_itm.auditing.fiftyone._label", killed)
    run(place, "--write", "fiftyone")
    assert (here / "audit/fiftyone/labels.json").read_bytes() == before
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert run(place, "--write", "fiftyone") == 0


def test_photos_that_the_data_set_holds_are_written(here, place):
    generator = np.random.default_rng(0)
    rows = []
    for number in range(6):
        photo = Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8))
        rows.append({"image": photo, "caption": f"caption {number}"})
    found = audit(Dataset.from_list(rows), str(place / "model"), cache_dir=str(here / "cache"))
    found.write("label-studio", "fiftyone", folder=here / "out")
    paths = json.loads((here / "out/fiftyone/data.json").read_text(encoding="utf-8")).values()
    assert {Path(path).parent for path in paths} == {here / "out/photos"}
    for path in paths:
        with Image.open(path) as photo:
            photo.load()
    again = found.write("fiftyone", folder=here / "out")
    assert again == {"fiftyone": here / "out/fiftyone"}


def test_an_unknown_format_is_refused(here, place):
    found = audit(str(place / "photos"), str(place / "model"), "--data.cache_dir", str(place / "cache"))
    with pytest.raises(ValueError, match="'excel' is no format of an audit; expected csv, label-studio, fiftyone"):
        found.write("excel", folder=here)
