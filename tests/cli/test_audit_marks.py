"""`clip-itm audit --marks`: what people said of pairs is in every answer, and in the data that are written."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from PIL import Image

from clip_itm import audit
from clip_itm.auditing.cleaning import kept_pairs, objections
from clip_itm.auditing.leaving_out import left_out
from clip_itm.cli import main
from clip_itm.data.configuration import FolderData
from clip_itm.data.load import load_splits
from clip_itm.data.marks import Mark, append_marks
from support.tiny import save_tiny_model


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """`model`, tiny and random, and `photos`: 40 of them with two captions, a quarter in val."""
    folder = tmp_path_factory.mktemp("marked")
    save_tiny_model(folder)
    (folder / "photos").mkdir()
    generator, rows = np.random.default_rng(0), []
    for number in range(40):
        name = f"{number:02d}.png"
        Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / "photos" / name)
        captions = [f"photo {number}", f"number {number}"]
        rows.append({"file_name": name, "captions": captions, "split": "val" if number % 4 == 3 else "train"})
    (folder / "photos" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def here(place, tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def judged(place):
    return audit(place / "photos", place / "model", "--data.cache_dir", str(place / "cache"))


def run(place: Path, *words: str) -> int:
    cache = ["--data.cache_dir", str(place / "cache")]
    return main(["audit", str(place / "photos"), "--model", str(place / "model"), *cache, *words])


def mark_of(judged, caption: str, kind: str, **more) -> Mark:
    row = next(row for row in judged.table.to_pylist() if row["caption"] == caption)
    names = {"image_id": row["image_id"], "caption": caption, "author": "ana"}
    return Mark(row["pair_hash"], kind, **{**names, **more})


@pytest.fixture
def marks(here, judged) -> Path:
    """One pair wrong, one right, one fixed, one skipped, and one of other data."""
    said = [
        mark_of(judged, "photo 0", "wrong"),
        mark_of(judged, "photo 1", "right", author="ben"),
        mark_of(judged, "number 4", "fixed", text=" ein Häuschen "),
        mark_of(judged, "number 5", "skipped"),
        Mark("0" * 32, "wrong", author="ana"),
    ]
    append_marks(here / "marks.jsonl", said)
    return here / "marks.jsonl"


def rows_of(file: Path) -> dict[str, dict]:
    return {row["caption"]: row for row in pq.read_table(file).to_pylist()}


def test_marks_are_told_and_stand_in_the_table(here, place, marks, capsys):
    assert run(place, "--marks", str(marks)) == 0
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "1 wrong, 1 right, 1 fixed, 1 skipped; by ana (3), ben (1)" in told
    assert "0 of them from a random sample, which tell how many are wrong from 10 on" in told
    assert "1 of no pair of these data" in told
    rows = rows_of(here / "audit" / "audit.parquet")
    found = {text: (rows[text]["mark"], rows[text]["marked_text"], rows[text]["clean_probability"]) for text in rows}
    assert found["photo 0"] == ("wrong", None, 0)
    assert found["photo 1"] == ("right", None, 1)
    assert found["number 4"] == ("fixed", " ein Häuschen ", 0)
    assert found["number 5"][:2] == ("skipped", None)
    assert {row[:2] for text, row in found.items() if text not in ("photo 0", "photo 1", "number 4", "number 5")} == {
        (None, None)
    }


def test_a_file_without_marks_changes_nothing(here, place):
    assert run(place) == 0
    before = pq.read_table(here / "audit" / "audit.parquet")
    (here / "none.jsonl").write_text("")
    assert run(place, "--marks", "none.jsonl") == 0
    assert pq.read_table(here / "audit" / "audit.parquet").equals(before)


def test_marks_of_other_data_are_told(here, place, capsys):
    append_marks(here / "other.jsonl", [Mark(f"{number:032x}", "wrong") for number in range(3)])
    assert run(place, "--marks", "other.jsonl", "--by-marks", "--clean-to", "cleaned") == 2
    assert "--by-marks: all 3 marks are of other pairs" in capsys.readouterr().err
    assert not (here / "cleaned").exists()
    assert run(place, "--marks", "other.jsonl") == 0
    assert "none; 3 of no pair of these data" in " ".join(capsys.readouterr().out.replace("│", " ").split())


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--marks", "missing.jsonl"], "missing.jsonl"),
        (["--marks", "table.csv"], "table.csv, line 1: expected a mark in JSON"),
        (["--clean-to", "out", "--by-marks"], "name the file of marks with --marks"),
        (["--budget", "3"], "say where with --clean-to"),
    ],
)
def test_what_is_no_file_of_marks_stops_before_anything_is_judged(here, place, capsys, monkeypatch, words, complaint):
    (here / "table.csv").write_text("pair,mark\n")
    monkeypatch.setattr("clip_itm.auditing.judging.judge_split", None)
    assert run(place, *words) == 2
    assert complaint in " ".join(capsys.readouterr().err.split())
    assert not (here / "audit").exists()


def test_several_files_in_the_order_of_their_time(here, place, judged):
    first = mark_of(judged, "photo 0", "wrong", time="2026-11-30T10:00:00+00:00")
    later = mark_of(judged, "photo 0", "right", time="2026-11-30T11:00:00+00:00", author="ben")
    append_marks(here / "a.jsonl", [later])
    append_marks(here / "b.jsonl", [first])
    assert run(place, "--marks", "a.jsonl", "--marks", "b.jsonl") == 0
    assert rows_of(here / "audit" / "audit.parquet")["photo 0"]["mark"] == "right"
    found = audit(place / "photos", place / "model", "--data.cache_dir", str(place / "cache"), marks=["b.jsonl"])
    assert found.marked.counts == {"wrong": 1}
    assert found.unmarked.values.tolist() == judged.clean.values.tolist()


def test_only_what_was_marked_wrong_goes_and_a_fixed_caption_takes_its_place(here, place, marks):
    assert run(place, "--marks", str(marks), "--clean-to", "cleaned", "--by-marks") == 0
    rows = [json.loads(line) for line in (here / "cleaned" / "metadata.jsonl").read_text().splitlines()]
    train = {row["file_name"][-6:-4]: row for row in rows if row["split"] == "train"}
    assert train["00"]["captions"] == ["number 0"]
    assert train["04"]["captions"] == ["photo 4", "ein Häuschen"]
    assert train["04"]["original_captions"] == [None, "number 4"]
    assert sum(len(row["captions"]) for row in train.values()) == 59
    note = json.loads((here / "cleaned" / "cleaned.json").read_text())
    assert note["rule"] == {"by_marks": True}
    assert {key: note["marks"][key] for key in ("wrong", "right", "fixed", "skipped", "unmatched")} == dict.fromkeys(
        ("wrong", "right", "fixed", "skipped", "unmatched"), 1
    )
    again = load_splits(FolderData(root="cleaned", cache_dir=str(here / "cache")))["train"].pairs
    assert len(again) == 59
    assert "ein Häuschen" in again.captions.to_pylist()


@pytest.mark.parametrize("layout", ["datasets", "webdataset"])
def test_other_layouts_keep_the_original_too(here, place, marks, layout):
    assert run(place, "--marks", str(marks), "--clean-to", "cleaned", "--by-marks", "--clean-as", layout) == 0
    if layout == "datasets":
        rows = load_dataset("parquet", data_files="cleaned/data/train-*.parquet", cache_dir=str(here / "c"))["train"]
        assert [text for row in rows["original_captions"] for text in row if text] == ["number 4"]
    else:
        assert b'"original_caption": "number 4"' in (here / "cleaned" / "train-000000.tar").read_bytes()


@pytest.mark.parametrize(
    "rule", [{}, {"below": 1.0}, {"drop_fraction": 1.0}, {"budget": 5}, {"drop_fraction": 0.0}, {"by_marks": True}]
)
def test_whatever_the_rule_marked_right_stays_and_marked_wrong_goes_first(judged, rule):
    rows = judged.table.to_pylist()
    worst, best = [row["caption"] for row in rows[:4]], [row["caption"] for row in rows[-4:]]
    found = judged.with_marks(
        [mark_of(judged, text, "right") for text in worst] + [mark_of(judged, text, "wrong") for text in best]
    )
    keep, _ = kept_pairs(found, **rule)
    pair = {row["caption"]: row["pair"] for row in rows}
    assert keep[[pair[text] for text in worst]].all()
    assert not keep[[pair[text] for text in best]].any() or rule.get("drop_fraction") == 0


def test_a_budget_is_kept(judged):
    found = replace(judged, estimate=replace(judged.estimate, share=0.5))
    for budget, dropped in ((3, 3), (1000, 30)):
        keep, rule = kept_pairs(found, budget=budget)
        assert (~keep).sum() == dropped
        assert np.array_equal(np.flatnonzero(~keep), np.sort(found.clean.order()[:dropped]))
        assert rule["budget"] == budget


def test_a_photo_may_lose_its_last_caption_where_a_person_said_so(judged):
    both = [mark_of(judged, text, "wrong") for text in ("photo 0", "number 0")]
    found = judged.with_marks(both)
    keep, _ = kept_pairs(found, by_marks=True)
    assert objections(found, keep, left_out(found, [])) == []
    assert any("last caption" in text for text in objections(judged, keep, left_out(judged, [])))


def test_marks_of_a_sample_are_the_answer(judged):
    """Here a random model judges, so that without marks nothing is known."""
    rows = judged.table.to_pylist()
    said = [
        mark_of(judged, row["caption"], "wrong" if k % 3 == 0 else "right", sampled=True) for k, row in enumerate(rows)
    ]
    found = judged.with_marks(said)
    assert found.share == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert found.sentence == "33.3 % (33.3 to 33.3 %), by 60 marks of a random sample"
    assert found.most == pytest.approx(1 / 3)
    trained = replace(judged, is_trained=True)
    assert trained.sentence.startswith(("at least", "no wrong"))
    assert trained.most == 1
    assert trained.with_marks(said).most == pytest.approx(1 / 3)
    assert found.with_marks([]).share == judged.share
    assert found.with_marks([]).sentence == judged.sentence
