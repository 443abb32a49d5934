"""An audit of precomputed regions: wrong captions are found and written as those of photos are, without a picture."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from clip_itm.cli import main
from clip_itm.data.marks import Mark, append_marks
from clip_itm.evaluation.detection import auc
from clip_itm.recipe import parse_recipe
from support.region_data import WIDTH, write_regions

PHOTOS, CAPTIONS = {"train": 150, "dev": 10, "test": 100}, 5


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """`run`, trained on `regions`, of whose test captions some are of other photos (`wrong`), and one a file's name."""
    place = tmp_path_factory.mktemp("regions")
    file = write_regions(place / "regions", PHOTOS) / "test_caps.txt"
    lines = file.read_text(encoding="utf-8").splitlines()
    wrong = np.arange(len(lines)) % CAPTIONS < 2
    moved = [lines[(k + 7 * CAPTIONS) % len(lines)] if wrong[k] else lines[k] for k in range(len(lines))]
    moved[4] = "IMG_2031.JPG"
    file.write_text("".join(f"{line}\n" for line in moved))
    np.save(place / "wrong.npy", wrong)
    content = {
        "output_dir": str(place / "run"),
        "data": {"source": "regions", "root": str(place / "regions"), "cache_dir": str(place / "cache")},
        "backbone": {"kind": "regions", "region_dim": WIDTH, "embed_dim": 32, "word_dim": 32, "min_word_count": 1},
        "training": {"epochs": 12, "batch_size": 50, "batches": "unique", "learning_rate": 5e-3, "trackers": []},
        "evaluation": {"split": "val", "bootstrap": 0},
    }
    (place / "recipe.yaml").write_text(parse_recipe(content, "regions").to_yaml())
    assert main(["train", str(place / "recipe.yaml")]) == 0
    return place


def run(place: Path, *words: str) -> int:
    return main(["audit", str(place / "recipe.yaml"), "--model", str(place / "run"), "--split", "test", *words])


@pytest.mark.slow
def test_wrong_captions_of_regions_are_found(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(place, "--top", "50", "--write", "csv") == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "File names" in told
    table = pq.read_table("audit/audit.parquet").to_pydict()
    wrong = np.load(place / "wrong.npy")[table["pair"]]
    assert auc(-np.array(table["clean_probability"]), wrong) > 0.9
    assert 1 - np.mean(table["clean_probability"]) == pytest.approx(wrong.mean(), abs=0.1)
    assert set(table["image"]) == {None}
    grouped = zip(table["caption"], table["groups"], strict=True)
    assert [caption for caption, kinds in grouped if "file name" in kinds] == ["IMG_2031.JPG"]
    page = Path("audit/audit.html").read_text(encoding="utf-8")
    assert page.count('data-pair="') == 50
    assert "data:image" not in page
    rows = csv.DictReader(Path("audit/audit.csv").read_text(encoding="utf-8").splitlines())
    assert [int(row["pair"]) for row in rows] == table["pair"]

    append_marks("marks.jsonl", [Mark(table["pair_hash"][0], "right"), Mark(table["pair_hash"][1], "wrong")])
    assert run(place, "--marks", "marks.jsonl") == 0
    marked = {row["pair"]: row["clean_probability"] for row in pq.read_table("audit/audit.parquet").to_pylist()}
    assert [marked[pair] for pair in table["pair"][:2]] == [1, 0]
    assert run(place, "--clean-to", "cleaned") == 2
    assert "these data are precomputed regions" in capsys.readouterr().err
    assert not Path("cleaned").exists()


@pytest.mark.slow
def test_a_model_of_photos_does_not_judge_regions(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "caption": "a"}) + "\n")
    assert main(["audit", "photos", "--model", str(place / "run")]) == 2
    assert capsys.readouterr().err
