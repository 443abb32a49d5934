"""The folder of a run: what --overwrite deletes, and what a start that failed leaves."""

import json
import shutil
from pathlib import Path

import pytest

from clip_itm.recipe import load_recipe
from clip_itm.runs.train import train
from clip_itm.training.checkpoints import holds_work
from clip_itm.training.folder import ADDED, MANIFEST, commit, delete, other_files, own_files, record
from support.run_folders import as_of_earlier, contents
from support.tiny import tiny_recipe

# --overwrite


@pytest.mark.parametrize("earlier", [False, True])
def test_all_that_a_run_wrote_is_its_own_and_goes(own_run, earlier):
    _, folder = own_run
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
def test_overwrite_refuses_what_is_not_the_runs_and_names_it(own_run, name, earlier, capsys):
    recipe, folder = own_run
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
def test_overwrite_keeps_what_other_runs_write_and_this_one_did_not(own_run, name):
    recipe, folder = own_run
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"mine")
    with pytest.raises(ValueError, match=f"holds {name}, which no run of clip-itm wrote"):
        train(recipe, overwrite=True)
    assert (folder / name).read_bytes() == b"mine"
    assert name not in own_files(folder)


def test_a_run_whose_list_was_lost_is_still_a_run(own_run):
    recipe, folder = own_run
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
        commit(run, temporary, "checkpoint-2")
    assert (run / "checkpoint-2").is_symlink()
    assert (tmp_path / "full" / "note").read_text() == "mine"


def test_overwrite_follows_no_link(own_run, tmp_path):
    recipe, folder = own_run
    shutil.move(folder / "best", tmp_path / "elsewhere")
    (folder / "best").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="holds best, which no run"):
        train(recipe, overwrite=True)
    assert (tmp_path / "elsewhere" / "model.safetensors").is_file()


def test_a_list_that_names_other_places_deletes_nothing_there(own_run, tmp_path):
    _, folder = own_run
    (tmp_path / "mine.txt").write_text("precious")
    (folder / MANIFEST).write_text(json.dumps({"files": ["../mine.txt", str(tmp_path / "mine.txt"), "recipe.yaml"]}))
    delete(folder)
    assert (tmp_path / "mine.txt").exists()
    assert not (folder / "recipe.yaml").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"files": 3}', "null", "\x00"])
def test_a_damaged_list_deletes_nothing(own_run, content):
    recipe, folder = own_run
    (folder / MANIFEST).write_text(content)
    before = contents(folder)
    with pytest.raises(ValueError, match=r"written.json is damaged"):
        train(recipe, overwrite=True)
    assert contents(folder) == before


def test_overwrite_keeps_the_old_run_until_the_new_one_can_begin(own_run, monkeypatch):
    recipe, folder = own_run
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


def fail(*args, **kwargs):
    raise ValueError("no such weights")


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
        with pytest.raises(ValueError, match=r"output_dir: .* is not a folder"):
            train(tiny_recipe(tmp_path).with_overrides("--output_dir", str(tmp_path / name)))
    assert (tmp_path / "file").read_text() == "precious"


def test_own_files_of_nothing(tmp_path):
    assert own_files(tmp_path / "nothing") == set()
    assert other_files(tmp_path) == []


def test_lists_of_folders_in_a_run_count_and_go_last(tmp_path, monkeypatch):
    """What a list within the run names is the run's own, until the list itself is deleted, behind all that it names."""
    inner = tmp_path / "prepared" / "fold-0"
    inner.mkdir(parents=True)
    record(tmp_path, ["a.txt", "prepared/fold-0/written.json"])
    record(inner, ["b.txt", "checkpoint-1/c.txt"])
    (inner / "checkpoint-1").mkdir()
    for name in ("a.txt", "prepared/fold-0/b.txt", "prepared/fold-0/checkpoint-1/c.txt", "prepared/fold-0/mine.txt"):
        (tmp_path / name).write_text("")
    assert other_files(tmp_path) == ["prepared/fold-0/mine.txt"]
    assert holds_work(tmp_path)
    deleted, unlink = [], Path.unlink

    def watch(path, **kwargs):
        deleted.append(path.relative_to(tmp_path).as_posix())
        unlink(path, **kwargs)

    monkeypatch.setattr(Path, "unlink", watch)
    delete(tmp_path)
    assert deleted[-2:] == ["prepared/fold-0/written.json", "written.json"]
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["mine.txt"]
