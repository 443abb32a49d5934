"""A run folder at the door: shown without its data, and every one of its files damaged in every way."""

import pytest

from clip_itm.cli import main
from support.bad_input.cases import recipe


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of one step on a folder of photos; the folder that holds it, its data and its recipe."""
    place = tmp_path_factory.mktemp("door")
    assert main(recipe(place)) == 0
    return place


def test_a_finished_run_is_shown_without_its_data(run, capsys):
    data, away = run / "photos", run / "away"
    data.rename(away)
    try:
        capsys.readouterr()
        assert main(["train", str(run / "recipe.yaml")]) == 0
    finally:
        away.rename(data)
    said = capsys.readouterr()
    assert "this run is finished" in said.err
    assert "cannot be checked: data.root: there is no folder" in said.err
    assert "best checkpoint by val" in said.out


def test_a_finished_run_is_not_shown_for_other_data(run, capsys):
    captions = run / "photos" / "captions.csv"
    kept = captions.read_text(encoding="utf-8")
    captions.write_text(kept.replace("photo 0 ", "another photo "), encoding="utf-8")
    try:
        assert main(["train", str(run / "recipe.yaml")]) == 2
    finally:
        captions.write_text(kept, encoding="utf-8")
    assert "the data have changed since this run began" in capsys.readouterr().err
