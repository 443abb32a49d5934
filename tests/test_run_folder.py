"""The folder of a run: what --overwrite deletes, which checkpoints a run goes on from, and one writer at a time."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from processes import ENVIRONMENT
from tiny import tiny_recipe

from clip_itm.cli import main
from clip_itm.lock import LOCK_FILE, locked
from clip_itm.recipe import Recipe, load_recipe
from clip_itm.runs.train import train
from clip_itm.training.folder import (
    ADDED,
    MANIFEST,
    checkpoints,
    clear_half_written,
    delete,
    last_complete_checkpoint,
    other_files,
    own_files,
    place,
    record,
    rotate,
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Recipe:
    """A finished run of two steps, with a checkpoint of each."""
    training = {"max_steps": 2, "save_every": 1, "trackers": ["tensorboard"]}
    recipe = tiny_recipe(tmp_path_factory.mktemp("trained"), training=training)
    train(recipe)
    assert [path.name for path in checkpoints(Path(recipe.output_dir))] == ["checkpoint-1", "checkpoint-2"]
    return recipe


@pytest.fixture
def run(trained, tmp_path) -> tuple[Recipe, Path]:
    """A copy of it."""
    folder = tmp_path / "run"
    shutil.copytree(trained.output_dir, folder)
    return trained.with_overrides("--output_dir", str(folder)), folder


def as_of_earlier(folder: Path) -> None:
    for path in [folder / MANIFEST, *folder.rglob("checksums.json")]:
        path.unlink()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def unfinished(folder: Path) -> None:
    (folder / "results.json").unlink()


# --overwrite


@pytest.mark.parametrize("earlier", [False, True])
def test_all_that_a_run_wrote_is_its_own_and_goes(run, earlier):
    _, folder = run
    if earlier:
        as_of_earlier(folder)
    assert list(folder.rglob("events.out.tfevents*"))
    assert other_files(folder) == []
    delete(folder)
    assert not folder.exists() or list(folder.iterdir()) == []


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "photo.jpg",
        "notes.txt",
        "best/notes.txt",
        "checkpoint-2/notes.txt",
        "ranks_best/mine.csv",
        "audit/mine.html",
        "runs/mine/log.txt",
        "other/results.json",
        "other/checkpoint-2/trainer_state.json",
        "checkpoint-2-old/trainer_state.json",
        "checkpoint-backup/model.safetensors",
        ".hidden",
        "Fotos/\udcff.jpg",
    ],
)
def test_overwrite_refuses_what_is_not_the_runs_and_names_it(run, name, earlier, capsys):
    recipe, folder = run
    if earlier:
        as_of_earlier(folder)
    (folder / name).parent.mkdir(exist_ok=True, parents=True)
    (folder / name).write_bytes(b"precious")
    before = contents(folder)
    with pytest.raises(ValueError, match=r"no run of clip-itm wrote.*move it away") as told:
        train(recipe, overwrite=True)
    assert name in str(told.value)
    assert contents(folder) == before


@pytest.mark.parametrize("name", ADDED)
def test_overwrite_keeps_what_other_runs_write_and_this_one_did_not(run, name):
    recipe, folder = run
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"mine")
    with pytest.raises(ValueError, match=f"holds {name}, which no run of clip-itm wrote"):
        train(recipe, overwrite=True)
    assert (folder / name).read_bytes() == b"mine"
    assert name not in own_files(folder)


def test_a_run_whose_list_was_lost_is_still_a_run(run):
    recipe, folder = run
    (folder / MANIFEST).unlink()
    assert other_files(folder) == []
    assert train(recipe, overwrite=True)["steps"] == 2


@pytest.mark.parametrize("target", ["nothing", "empty", "full"])
def test_a_link_in_the_place_of_a_checkpoint_stays(tmp_path, target):
    run, temporary = tmp_path / "run", tmp_path / "run" / "temporary"
    temporary.mkdir(parents=True)
    (temporary / "weights").write_text("new")
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").write_text("mine")
    (run / "checkpoint-2").symlink_to(tmp_path / target)
    with pytest.raises(ValueError, match="checkpoint-2 is in the way"):
        place(run, temporary, "checkpoint-2")
    assert (run / "checkpoint-2").is_symlink()
    assert (tmp_path / "full" / "note").read_text() == "mine"


def test_overwrite_follows_no_link(run, tmp_path):
    recipe, folder = run
    shutil.move(folder / "best", tmp_path / "elsewhere")
    (folder / "best").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="holds best, which no run"):
        train(recipe, overwrite=True)
    assert (tmp_path / "elsewhere" / "model.safetensors").is_file()


def test_a_list_that_names_other_places_deletes_nothing_there(run, tmp_path):
    _, folder = run
    (tmp_path / "mine.txt").write_text("precious")
    (folder / MANIFEST).write_text(json.dumps({"files": ["../mine.txt", str(tmp_path / "mine.txt"), "recipe.yaml"]}))
    delete(folder)
    assert (tmp_path / "mine.txt").exists()
    assert not (folder / "recipe.yaml").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"files": 3}', "null", "\x00"])
def test_a_damaged_list_deletes_nothing(run, content):
    recipe, folder = run
    (folder / MANIFEST).write_text(content)
    before = contents(folder)
    with pytest.raises(ValueError, match=r"written.json is damaged"):
        train(recipe, overwrite=True)
    assert contents(folder) == before


def test_overwrite_keeps_the_old_run_until_the_new_one_can_begin(run, monkeypatch):
    recipe, folder = run
    before = contents(folder)
    with monkeypatch.context() as patch:
        patch.setattr("clip_itm.runs.train.make_model", fail)
        with pytest.raises(ValueError, match="no such weights"):
            train(recipe, overwrite=True)
    assert contents(folder) == before
    other = recipe.with_overrides("--training.learning_rate", "1e-4")
    assert train(other, overwrite=True)["steps"] == 2
    assert load_recipe(folder) == other
    assert other_files(folder) == []


def fail(*args, **kwargs):
    raise ValueError("no such weights")


def test_a_folder_of_a_user_is_never_filled_over(tmp_path):
    recipe = tiny_recipe(tmp_path, training={"max_steps": 1})
    folder = Path(recipe.output_dir)
    folder.mkdir()
    mine = "# my own words\n" + recipe.to_yaml()
    (folder / "recipe.yaml").write_text(mine)
    with pytest.raises(ValueError, match=r"holds recipe.yaml, where a run writes"):
        train(recipe)
    assert (folder / "recipe.yaml").read_text() == mine
    (folder / "recipe.yaml").unlink()
    (folder / "notes.txt").write_text("mine")
    train(recipe)
    assert other_files(folder) == ["notes.txt"]


# A start that failed


@pytest.mark.parametrize("place", ["runs.train.make_model", "training.guarded.GuardedTrainer.train"])
@pytest.mark.filterwarnings("ignore")
def test_a_start_that_failed_does_not_block_the_corrected_recipe(tmp_path, monkeypatch, place):
    recipe = tiny_recipe(tmp_path, head={"kind": "npc", "rho": 0.5}, training={"max_steps": 1})
    folder = Path(recipe.output_dir)
    with monkeypatch.context() as patch:
        patch.setattr(f"clip_itm.{place}", fail)
        with pytest.raises(ValueError, match="no such weights"):
            train(recipe)
    assert (folder / "recipe.yaml").exists() == place.startswith("training")
    corrected = recipe.with_overrides("--noise.ratio", "0.2", "--training.learning_rate", "1e-4")
    assert train(corrected)["noise"]["ratio"] == 0.2
    assert load_recipe(folder) == corrected


def test_an_output_folder_that_is_a_file_is_told_before_data_are_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("clip_itm.runs.train.prepare", lambda recipe: pytest.fail("data were loaded"))
    (tmp_path / "file").write_text("precious")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    for name in ("file", "file/run", "nowhere"):
        with pytest.raises(ValueError, match=r"output_dir: .* is no folder"):
            train(tiny_recipe(tmp_path).with_overrides("--output_dir", str(tmp_path / name)))
    assert (tmp_path / "file").read_text() == "precious"


# Which checkpoints a run goes on from


def test_other_names_are_neither_resumed_from_nor_a_crash_nor_deleted(run):
    recipe, folder = run
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
def test_a_checkpoint_of_another_run_is_refused_by_name(run, key, value, told):
    """Not even where the run's own recipe says that it is this one."""
    recipe, folder = run
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


def test_results_without_a_recipe_are_not_taken_for_leftovers(run):
    recipe, folder = run
    for path in checkpoints(folder):
        shutil.rmtree(path)
    (folder / "recipe.yaml").unlink()
    before = contents(folder)
    with pytest.raises(ValueError, match=r"holds results.json, but no recipe.yaml .*best/recipe.yaml"):
        train(recipe)
    assert contents(folder) == before


def test_a_checkpoint_that_does_not_say_whose_it_is_is_refused(run):
    recipe, folder = run
    unfinished(folder)
    (folder / "checkpoint-1" / "provenance.json").unlink()
    with pytest.raises(ValueError, match=r"checkpoint-1 is a checkpoint of another run \(it does not say of which"):
        train(recipe)


def test_a_best_checkpoint_that_is_gone_is_told_before_training(run):
    recipe, folder = run
    unfinished(folder)
    best = json.loads((folder / "checkpoint-2" / "trainer_state.json").read_text())["best_global_step"]
    shutil.rmtree(folder / f"checkpoint-{best}")
    if best == 2:
        assert train(recipe)["steps"] == 2
    else:
        with pytest.raises(ValueError, match=r"checkpoint-1, the best one so far, is gone"):
            train(recipe)


def test_half_written_checkpoints_are_cleared_by_the_next_start_and_no_others(run):
    recipe, folder = run
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


# Rotation


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

    place = guarded.place

    def place_back_in_time(run, temporary, name):
        place(run, temporary, name)
        clock[0] -= 3600
        os.utime(run / name, (clock[0], clock[0]))
        placed.append(name)

    monkeypatch.setattr(guarded, "place", place_back_in_time)
    results = train(recipe)
    assert placed == [f"checkpoint-{step}" for step in range(1, 7)]
    kept = {path.name for path in checkpoints(Path(recipe.output_dir))}
    assert kept >= {"checkpoint-6", f"checkpoint-{results['best_step']}"}
    assert len(kept) == 2


# One writer at a time


def start(*words: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "clip_itm.cli", *words]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_a_folder_that_is_being_trained_in_is_refused_before_anything_is_touched(run, tmp_path, monkeypatch, capsys):
    recipe, folder = run
    unfinished(folder)
    monkeypatch.setattr("clip_itm.runs.train.prepare", lambda recipe: pytest.fail("data were loaded"))
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "held\n"
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
        holder.wait()
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
        said = [process.communicate(timeout=300)[0] for process in both]
        assert sorted(process.returncode for process in both) == [0, 2], said
        loser = [process.returncode for process in both].index(2)
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
    assert "is no folder" in capsys.readouterr().err


@pytest.mark.parametrize("text", ['{"mine": 1}', "[]", "{", ""])
def test_a_comparison_replaces_no_table_of_somebody_else(tmp_path, capsys, text):
    (tmp_path / "recipe.yaml").write_text(tiny_recipe(tmp_path).to_yaml())
    (tmp_path / "grid").mkdir()
    (tmp_path / "grid" / "comparison.json").write_text(text)
    assert main(["compare", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "grid")]) == 2
    assert "holds comparison.json but no comparison.json of clip-itm" in capsys.readouterr().err
    assert contents(tmp_path / "grid") == {"comparison.json": text.encode()}


def test_own_files_of_nothing(tmp_path):
    assert own_files(tmp_path / "nothing") == set()
    assert other_files(tmp_path) == []
