"""`data check`, `audit`, the app of an audit, `index` and `search` on photos that lie in tars."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from clip_itm import load_model
from clip_itm.cli import main
from clip_itm.retrieval.app_audit import AuditTable
from clip_itm.retrieval.sources import make_source
from support.tars import photo_bytes, samples, write_tar
from support.tiny import save_tiny_model


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """`model`, tiny and random, and `tars` with train, val and test."""
    folder = tmp_path_factory.mktemp("shards")
    save_tiny_model(folder)
    for number, split in enumerate(("train", "val", "test")):
        write_tar(folder / f"tars/{split}-00000.tar", samples(30 * number, 24))
    return folder


def test_data_check_counts_and_names_what_is_in_tars(place, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"output_dir: {tmp_path / 'run'}\ndata: {{source: webdataset, root: {place / 'tars'}, cache_dir: {tmp_path}}}\n"
        f"backbone: {{kind: open_clip, model: {place / 'tiny.json'}}}\nhead: {{kind: clip}}\n"
        "training: {batch_size: 8}\n"
    )
    assert main(["data", "check", str(recipe), "--json", str(tmp_path / "report.json")]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert {name: (one["images"], one["formats"]) for name, one in report["splits"].items()} == dict.fromkeys(
        ("train", "val", "test"), (24, {"JPEG": 24})
    )
    write_tar(tmp_path / "broken/train.tar", samples(0, 8) | {"x.jpg": photo_bytes(1)[:300], "x.txt": b"cut"})
    write_tar(tmp_path / "broken/val.tar", samples(10, 8) | {"y.jpg": photo_bytes(0), "y.txt": b"as in train"})
    assert main(["data", "check", str(recipe), "--data.root", str(tmp_path / "broken")]) == 1
    told = capsys.readouterr().out
    assert "1 photo is truncated" in told
    assert "x.jpg" in told
    assert "LEAK: 1 photo is in split train and in split val, byte by byte" in told


def test_a_folder_of_tars_is_audited_and_its_photos_are_shown(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--model", str(place / "model"), "--data.cache_dir", str(tmp_path / "cache")]
    assert main(["audit", str(place / "tars"), *words]) == 0
    assert "tars of WebDataset or img2dataset (test-00000.tar, ...)" in capsys.readouterr().out
    table = pq.read_table(tmp_path / "audit/audit.parquet")
    assert table["image"].null_count == len(table) == 24, "the data set holds them"
    app = AuditTable.load(tmp_path / "audit")
    assert app.held.jpeg("000000003", 16).startswith(b"\xff\xd8")
    assert app.held.jpeg("nothing", 16) is None
    cleaned = ["--clean-to", "cleaned", "--clean-as", "webdataset", "--drop-fraction", "0.25", "--force"]
    assert main(["audit", str(place / "tars"), *words, "--out", "again", *cleaned]) == 0
    assert len(make_source(tmp_path / "cleaned").ids) == 18 + 24 + 24
    assert main(["audit", str(place / "tars/{train,val}-00000.tar"), *words, "--out", "braces"]) == 0


def test_photos_in_tars_are_indexed_and_shown(place, tmp_path, capsys):
    source = make_source(place / "tars")
    assert sorted(source.ids) == sorted(f"{n:09d}" for start in (0, 30, 60) for n in range(start, start + 24))
    assert set(source.paths) == {None}
    gallery, page = tmp_path / "gallery", tmp_path / "answers.png"
    assert main(["index", str(place / "model"), str(place / "tars"), "--out", str(gallery)]) == 0
    assert main(["search", str(place / "model"), str(gallery), "photo 3", "--montage", str(page)]) == 0
    assert page.stat().st_size > 1000
    assert load_model(place / "model") is not None
