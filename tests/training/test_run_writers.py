"""One writer at a time: a run's folder, and that of a comparison."""

import json
import os

import pytest

from clip_itm.cli import main
from clip_itm.lock import LOCK_FILE, locked
from clip_itm.runs.train import train
from support.forks import Forked
from support.processes import ENVIRONMENT
from support.run_folders import contents, unfinished
from support.tiny import tiny_recipe


def start(*words: str) -> Forked:
    return Forked("-m", "clip_itm.cli", *words, env=ENVIRONMENT)


def test_a_folder_that_is_being_trained_in_is_refused_untouched(own_run, tmp_path, monkeypatch, capsys):
    recipe, folder = own_run
    unfinished(folder)
    monkeypatch.setattr("clip_itm.runs.train.prepare", lambda recipe: pytest.fail("data were loaded"))
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    holder = Forked("-c", HOLD, str(folder), env=ENVIRONMENT)
    try:
        holder.wait_for("held")
        before = contents(folder)
        for words in (
            ["train", str(tmp_path / "recipe.yaml")],
            ["train", str(tmp_path / "recipe.yaml"), "--overwrite"],
        ):
            assert main(words) == 2
            assert (
                f"{folder} is being written by process {holder.pid} on {os.uname().nodename}" in capsys.readouterr().err
            )
        assert contents(folder) == before
    finally:
        holder.kill()  # its lock goes with it
    assert (folder / LOCK_FILE).exists()
    with locked(folder, "train"):
        pass


HOLD = """
import sys, time
from clip_itm.lock import locked
with locked(sys.argv[1], "train"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_two_trainings_in_one_folder_and_two_comparisons_have_one_winner(tmp_path):
    recipe = tiny_recipe(tmp_path, training={"max_steps": 4})
    alone = train(recipe.with_overrides("--output_dir", str(tmp_path / "alone")))
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    for words, found in (
        (["train", str(tmp_path / "recipe.yaml")], tmp_path / "run" / "results.json"),
        (
            ["compare", str(tmp_path / "recipe.yaml"), "--noise", "0.4", "--out", str(tmp_path / "grid")],
            tmp_path / "grid" / "recipe" / "noise-0.4" / "seed-0" / "results.json",
        ),
    ):
        both = [start(*words) for _ in range(2)]
        statuses = [process.wait() for process in both]
        said = [process.output for process in both]
        assert sorted(statuses) == [0, 2], said
        loser = statuses.index(2)
        assert f"is being written by process {both[1 - loser].pid} on {os.uname().nodename}" in said[loser]
        assert "Traceback" not in said[loser]
        assert json.loads(found.read_text())["best"] == alone["best"]


def test_a_comparison_takes_no_folder_with_files_of_that_name(tmp_path, capsys):
    recipe = tiny_recipe(tmp_path)
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    (tmp_path / "grid").mkdir()
    (tmp_path / "grid" / "comparison.md").write_text("mine")
    assert main(["compare", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "grid")]) == 2
    assert "holds comparison.md but no comparison.json" in capsys.readouterr().err
    assert contents(tmp_path / "grid") == {"comparison.md": b"mine"}
    assert main(["compare", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "recipe.yaml")]) == 2
    assert "is not a folder" in capsys.readouterr().err


@pytest.mark.parametrize("text", ['{"mine": 1}', "[]", "{", ""])
def test_a_comparison_replaces_no_table_of_somebody_else(tmp_path, capsys, text):
    (tmp_path / "recipe.yaml").write_text(tiny_recipe(tmp_path).to_yaml())
    (tmp_path / "grid").mkdir()
    (tmp_path / "grid" / "comparison.json").write_text(text)
    assert main(["compare", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "grid")]) == 2
    assert "holds comparison.json but no comparison.json of clip-itm" in capsys.readouterr().err
    assert contents(tmp_path / "grid") == {"comparison.json": text.encode()}
