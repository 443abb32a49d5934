"""Runs and commands on data that are partly broken: what they leave out, and what they say of it."""

import json
from pathlib import Path

import pytest

from clip_itm.cli import main
from clip_itm.recipe import load_recipe
from clip_itm.runs.setup import load_data
from support.bad_input.cases import photos, recipe
from support.broken_data import content
from support.photo_faults import FAULTS, PAGE, damaged, encoded, picture


def test_without_skip_broken_all_are_named_before_a_run_begins(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("clip_itm.runs.train.make_model", None)
    words = recipe(tmp_path)
    for seed, fault in enumerate([fault for fault in FAULTS if fault in ("cut", "page", "zeros")]):
        file = tmp_path / "photos" / f"{3 * seed + 1:02d}.jpg"
        file.write_bytes(damaged(file.read_bytes()[:200], fault, seed))
    assert main(words) == 2
    message = capsys.readouterr().err
    assert "3 of 12 photos cannot be read:" in message
    assert all(
        f"{split}: {tmp_path}/photos/{number}.jpg: " in message
        for split, number in zip(("train", "train", "test"), ("01", "04", "07"), strict=True)
    )
    assert "set data.skip_broken: true to go on with the others" in message
    assert not (tmp_path / "run" / "recipe.yaml").exists()
    assert main([*words, "--data.cache_images", "16"]) == 2
    assert "3 of 12 photos cannot be read:" in capsys.readouterr().err


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished run on 24 photos of which three are broken, with two empty captions, at 40 % wrong captions."""
    place = tmp_path_factory.mktemp("run")
    root = photos(place / "photos", 24)
    for name in ("01.jpg", "03.jpg", "16.jpg"):
        (root / name).write_bytes(PAGE)
    (root / "02.jpg").write_bytes(b"")
    table = (root / "captions.csv").read_text()
    table = table.replace("photo 5 seen the 0. time", "").replace("photo 6 seen the 1. time", " ")
    (root / "captions.csv").write_text(table)
    words = recipe(place, noise={"ratio": 0.4}, training={"max_steps": 2})
    assert main([*words, "--data.skip_broken", "true"]) == 0
    return place / "run"


def test_a_run_counts_and_names_what_it_left_out(run):
    names = json.loads((run / "skipped.json").read_text())
    assert [(Path(out["item"]).name, out["kind"]) for out in names["train"]] == [
        ("captions.csv:12", "caption"),
        ("01.jpg", "broken"),
        ("16.jpg", "broken"),
    ]
    assert [Path(out["item"]).name for out in names["val"]] == ["02.jpg", "captions.csv:15"]
    assert [Path(out["item"]).name for out in names["test"]] == ["03.jpg"]
    assert "not a photo" in names["test"][0]["reason"]
    provenance = json.loads((run / "provenance.json").read_text())["splits"]
    counts = {name: (split["images"], split["broken"], split["empty_captions"]) for name, split in provenance.items()}
    assert counts == {"train": (10, 2, 1), "val": (5, 1, 1), "test": (5, 1, 0)}
    card = (run / "best" / "README.md").read_text()
    assert "| train | 10 | 19 | 2 broken photos, 1 empty caption |" in card
    assert "| test | 5 | 10 | 1 broken photo |" in card


def test_every_command_on_the_run_sees_the_same_photos(run, tmp_path, capsys):
    assert main(["evaluate", str(run), "--json", str(tmp_path / "results.json")]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    provenance = json.loads((run / "provenance.json").read_text())
    assert results["split_sha256"] == provenance["splits"]["test"]["sha256"]
    assert (results["images"], [Path(out["item"]).name for out in results["skipped"]]) == (5, ["03.jpg"])
    assert results["all"]["metrics"] == json.loads((run / "results.json").read_text())["best"]["all"]["metrics"]
    assert main(["audit", "--run", str(run), "--out", str(tmp_path / "audit")]) == 0
    assert main(["bank", "build", "--run", str(run), "--out", str(tmp_path / "bank.npz")]) == 0
    assert main(["noise", "make", str(run / "recipe.yaml"), "--out", str(tmp_path / "noise.npz")]) == 0
    assert provenance["noise"]["sha256"][:12] in capsys.readouterr().out
    data = load_data(load_recipe(run))
    assert {name: split.sha256 for name, split in data.splits.items()} == {
        name: split["sha256"] for name, split in provenance["splits"].items()
    }
    assert data.noise.sha256 == provenance["noise"]["sha256"]


def test_a_photo_that_is_repaired_later_is_told_as_changed_data(run, capsys):
    photo = run.parent / "photos" / "01.jpg"
    photo.write_bytes(content(1))
    try:
        assert main(["train", str(run / "recipe.yaml")]) == 2
        assert "the data have changed since this run began (train " in capsys.readouterr().err
    finally:
        photo.write_bytes(PAGE)
    assert main(["train", str(run / "recipe.yaml")]) == 0
    assert "this run is finished" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [0, 2])
def test_a_photo_that_breaks_during_training_is_named_with_what_to_do(tmp_path, capsys, monkeypatch, workers):
    words = [*recipe(tmp_path), "--training.batch_size", "12", "--data.num_workers", str(workers)]
    photo = tmp_path / "photos" / "00.jpg"
    from clip_itm.runs import train as run_module

    original = run_module.make_trainer

    def break_a_photo(*args, **kwargs):
        photo.write_bytes(encoded(picture(32, 32, 0), "JPEG")[:-100])
        return original(*args, **kwargs)

    monkeypatch.setattr(run_module, "make_trainer", break_a_photo)
    assert main(words) == 2
    message = capsys.readouterr().err
    assert f"{photo}: the photo cannot be decoded (" in message
    assert "It could be read when this run began: put it back and give the same command again" in message
    assert "Traceback" not in message
