"""Which checkpoints a run goes on from, and which of them rotation keeps."""

import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_itm.runs.train import train
from clip_itm.training.checkpoints import checkpoints, clear_half_written, last_complete_checkpoint, rotate
from clip_itm.training.folder import MANIFEST, record
from support.run_folders import contents, unfinished
from support.tiny import tiny_recipe


def test_other_names_are_neither_resumed_from_nor_a_crash_nor_deleted(own_run):
    recipe, folder = own_run
    unfinished(folder)
    names = ("checkpoint-18-old", "checkpoint-backup", "checkpoint-007", "checkpoint-", "checkpoint-9x", "checkpoint-٣")
    for name in names:
        shutil.copytree(folder / "checkpoint-2", folder / name)
    before = {name: contents(folder / name) for name in names}
    assert last_complete_checkpoint(folder).name == "checkpoint-2"
    train(recipe)
    assert {name: contents(folder / name) for name in names} == before


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("training.seed", 5, "training.seed"),
        ("noise.seed", 5, "noise.seed, noise "),
        ("noise.ratio", 0.2, "noise.ratio, noise "),
        ("training.learning_rate", 0.5, "training.learning_rate"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_by_name(own_run, key, value, told):
    """Not even where the run's own recipe says that it is this one."""
    recipe, folder = own_run
    unfinished(folder)
    other = recipe.with_overrides(f"--{key}", f"{value}")
    for name in ("recipe.yaml", "provenance.json", "checksums.json"):
        (folder / name).unlink()
    with pytest.raises(ValueError, match=r"holds checkpoint-2, but no recipe.yaml"):
        train(other)
    (folder / "recipe.yaml").write_text(other.to_yaml())
    with pytest.raises(ValueError, match=r"holds checkpoint-2, but no provenance.json"):
        train(other)
    began = json.loads((folder / "checkpoint-2" / "provenance.json").read_text())
    if "noise" in key:
        fresh = tiny_recipe(folder.parent, noise=other.noise.model_dump(), training={"max_steps": 1})
        began["noise"]["sha256"] = train(fresh.with_overrides("--output_dir", str(folder.parent / "x")))["noise"][
            "sha256"
        ]
    (folder / "provenance.json").write_text(json.dumps(began))
    before = contents(folder)
    with pytest.raises(ValueError, match=rf"checkpoint-1 is a checkpoint of another run \({told}"):
        train(other)
    assert contents(folder) == before


def test_results_without_a_recipe_are_not_taken_for_leftovers(own_run):
    recipe, folder = own_run
    for path in checkpoints(folder):
        shutil.rmtree(path)
    (folder / "recipe.yaml").unlink()
    before = contents(folder)
    with pytest.raises(ValueError, match=r"holds results.json, but no recipe.yaml .*best/recipe.yaml"):
        train(recipe)
    assert contents(folder) == before


def test_a_checkpoint_that_does_not_say_whose_it_is_is_refused(own_run):
    recipe, folder = own_run
    unfinished(folder)
    (folder / "checkpoint-1" / "provenance.json").unlink()
    with pytest.raises(ValueError, match=r"checkpoint-1 is a checkpoint of another run \(it does not say of which"):
        train(recipe)


def test_a_best_checkpoint_that_is_gone_is_told_before_training(own_run):
    recipe, folder = own_run
    unfinished(folder)
    best = json.loads((folder / "checkpoint-2" / "trainer_state.json").read_text())["best_global_step"]
    shutil.rmtree(folder / f"checkpoint-{best}")
    if best == 2:
        assert train(recipe)["steps"] == 2
    else:
        with pytest.raises(ValueError, match=r"checkpoint-1, the best one so far, is gone"):
            train(recipe)


def test_half_written_checkpoints_are_cleared_by_the_next_start_and_no_others(own_run):
    recipe, folder = own_run
    unfinished(folder)
    (folder / "checkpoint-2" / "trainer_state.json").unlink()
    temporary = folder / ".checkpoint.00000000-1-1.tmp"
    temporary.mkdir()  # of another machine: it may still be alive
    results = train(recipe)
    assert (results["steps"], temporary.exists()) == (2, True)
    (folder / "checkpoint-7").mkdir()
    (folder / "checkpoint-7" / "mine.txt").write_text("precious")
    clear_half_written(folder)
    assert (folder / "checkpoint-7" / "mine.txt").exists()


def make_checkpoint(folder: Path, step: int, mtime: float | None = None, own: bool = True) -> None:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text("{}")
    if own:
        record(folder, [f"{checkpoint.name}/trainer_state.json"])
    if mtime is not None:
        os.utime(checkpoint, (mtime, mtime))


@given(steps=st.sets(st.integers(1, 200), min_size=1, max_size=6), best=st.integers(0, 5), clock=st.randoms())
def test_rotation_goes_by_step_and_never_takes_the_best_the_newest_or_a_foreign_one(
    tmp_path_factory, steps, best, clock
):
    folder = tmp_path_factory.mktemp("rotation")
    steps = sorted(steps)
    best = steps[best % len(steps)]
    for step in steps:
        make_checkpoint(folder, step, mtime=clock.uniform(0, 2e9))
    make_checkpoint(folder, 1000, mtime=0, own=False)
    rotate(folder, best)
    kept = [int(path.name.split("-")[1]) for path in checkpoints(folder)]
    expected = {best, steps[-1]} | (set(steps[-2:]) if best == steps[-1] else set())
    assert kept == [*sorted(expected), 1000]
    listed = {name.split("/")[0] for name in json.loads((folder / MANIFEST).read_text())["files"]}
    assert listed - {MANIFEST} == {f"checkpoint-{step}" for step in expected}


def test_a_note_in_an_old_checkpoint_stays_when_that_goes(tmp_path):
    for step in (1, 2, 3):
        make_checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-1" / "mine.txt").write_text("precious")
    rotate(tmp_path, best=2)
    assert contents(tmp_path).keys() >= {"checkpoint-1/mine.txt"}
    assert last_complete_checkpoint(tmp_path).name == "checkpoint-3"


def test_a_clock_that_goes_back_loses_no_new_checkpoint(tmp_path, monkeypatch):
    """Every checkpoint looks an hour older than the one before it."""
    recipe = tiny_recipe(tmp_path, training={"epochs": 1, "save_every": 1})
    placed, clock = [], [2e9]
    from clip_itm.training import guarded

    commit = guarded.commit

    def place_back_in_time(run, temporary, name):
        commit(run, temporary, name)
        clock[0] -= 3600
        os.utime(run / name, (clock[0], clock[0]))
        placed.append(name)

    monkeypatch.setattr(guarded, "commit", place_back_in_time)
    results = train(recipe)
    assert placed == [f"checkpoint-{step}" for step in range(1, 7)]
    kept = {path.name for path in checkpoints(Path(recipe.output_dir))}
    assert kept >= {"checkpoint-6", f"checkpoint-{results['best_step']}"}
    assert len(kept) == 2
