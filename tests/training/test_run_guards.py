"""What a run does when it diverges, when it cannot write, and when what is only shown fails: nothing good is lost."""

import errno
import json
import math
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from clip_itm.cli import main
from clip_itm.data.load import load_splits
from clip_itm.data.load_noise import load_noise
from clip_itm.recipe import load_recipe
from clip_itm.runs.train import train
from clip_itm.training.callbacks import FinishCallback
from clip_itm.training.checkpoints import checkpoints, last_complete_checkpoint
from clip_itm.training.folder import other_files
from clip_itm.training.guarded import GuardedTrainer
from support.bad_input.cases import photos
from support.bad_input.cases import recipe as write_recipe
from support.killed_runs import HEADS
from support.tiny import tiny_recipe


def spoil_gradient(model) -> None:
    next(value for value in model.parameters() if value.requires_grad).register_hook(
        lambda gradient: gradient * math.inf
    )


def spoil_loss(model) -> None:
    with torch.no_grad():
        next(value for name, value in model.named_parameters() if "text" in name and value.requires_grad).fill_(
            math.nan
        )


@pytest.mark.parametrize("spoil", [spoil_gradient, spoil_loss])
@pytest.mark.parametrize("method", ["clip", "npc", "crcl", "aahr"])
@pytest.mark.filterwarnings("ignore")
def test_a_run_that_diverges_stops_at_that_step_and_keeps_the_last_good_checkpoint(
    tmp_path, monkeypatch, method, spoil
):
    head = HEADS[method] | ({"warmup_epochs": 0} if method == "npc" else {})
    head |= {"schedules": None, "frozen_epochs": 1} if method == "crcl" else {}
    recipe = tiny_recipe(tmp_path, head=head, training={"epochs": 2, "max_steps": 5, "save_every": 1})
    folder = Path(recipe.output_dir)

    def spoil_at_step(self, args, state, control, model=None, **kwargs):
        if state.global_step == 2:
            spoil(model)

    with monkeypatch.context() as patch:
        patch.setattr(FinishCallback, "on_step_begin", spoil_at_step)
        with pytest.raises(
            ValueError, match=r"the loss is .* at step 3: training stops .*checkpoint-2 is the last good"
        ):
            train(recipe)
    assert [path.name for path in checkpoints(folder)] == ["checkpoint-1", "checkpoint-2"]
    weights = load_file(folder / "checkpoint-2" / "model.safetensors")
    assert all(value.isfinite().all() for value in weights.values())
    assert not (folder / "results.json").exists()


def test_weights_that_are_lost_are_saved_nowhere(tmp_path, monkeypatch):
    """By the optimiser step before a checkpoint: loss and gradient were finite, and no evaluation has seen them."""
    recipe = tiny_recipe(tmp_path, training={"epochs": 1, "save_every": 1})

    def spoil_after_step(self, args, state, control, model=None, **kwargs):
        if state.global_step == 2:  # the one that has just been made is the third
            spoil_loss(model)

    monkeypatch.setattr(FinishCallback, "on_optimizer_step", spoil_after_step)
    with pytest.raises(
        ValueError, match=r"weights are not finite at step 3: training stops .*checkpoint-2 is the last"
    ):
        train(recipe)
    assert last_complete_checkpoint(Path(recipe.output_dir)).name == "checkpoint-2"


def test_a_run_that_diverges_at_once_leaves_its_folder_to_the_corrected_recipe(tmp_path, capsys):
    recipe = tiny_recipe(tmp_path, training={"max_steps": 2, "learning_rate": 1e6, "warmup": 0})
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.to_yaml())
    assert main(["train", str(file)]) == 2
    said = capsys.readouterr().err
    assert "at step 2: training stops before such weights are saved (no checkpoint had been saved yet)" in said
    assert "Traceback" not in said
    assert main(["train", str(file), "--training.learning_rate", "1e-4"]) == 0


# A full disk

FULL = {
    "safetensors": (
        "transformers.modeling_utils.safe_save_file",
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ),
    "tokenizer": (
        "transformers.tokenization_utils_base.PreTrainedTokenizerBase.save_pretrained",
        Exception("No space left on device (os error 28)"),
    ),
    "torch": ("torch.save", RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 576 vs 534")),
    "files": ("pathlib.Path.write_text", OSError(errno.ENOSPC, "No space left on device")),
    "arrays": ("numpy.savez_compressed", OSError(errno.ENOSPC, "No space left on device")),
    "checksums": ("clip_itm.training.folder.write_checksums", OSError(errno.ENOSPC, "No space left on device")),
    "list": ("clip_itm.training.folder.record", OSError(errno.ENOSPC, "No space left on device")),
}


@pytest.mark.parametrize(
    "saver",
    [
        name if name in ("torch", "safetensors", "tokenizer") else pytest.param(name, marks=pytest.mark.slow)
        for name in FULL
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_full_disk_at_a_checkpoint_leaves_the_one_before_whole(tmp_path, monkeypatch, capsys, saver):
    head = HEADS["npc"] | {"warmup_epochs": 0}
    recipe = tiny_recipe(tmp_path, head=head, training={"epochs": 1, "max_steps": 3, "save_every": 1})
    folder, file = Path(recipe.output_dir), tmp_path / "recipe.yaml"
    file.write_text(recipe.to_yaml())
    save = GuardedTrainer._save_checkpoint
    name, error = FULL[saver]

    def fail(*args, **kwargs):
        raise error

    def save_on_a_full_disk(self, model, trial):
        with monkeypatch.context() as patch:
            if self.state.global_step == 2:
                patch.setattr(name, fail)
            save(self, model, trial)

    with monkeypatch.context() as patch:
        patch.setattr(GuardedTrainer, "_save_checkpoint", save_on_a_full_disk)
        assert main(["train", str(file)]) == 2
    said = capsys.readouterr().err
    assert f"{folder}/checkpoint-2 could not be written: " in said
    assert "checkpoint-1 is whole, nothing else is lost; make room and run the same command again" in said
    assert "Traceback" not in said
    assert sorted(path.name for path in folder.iterdir() if "checkpoint" in path.name) == ["checkpoint-1"]
    assert main(["train", str(file)]) == 0
    assert "resuming from" in capsys.readouterr().err
    assert other_files(folder) == []


@pytest.mark.parametrize("place", ["save_pretrained", "write_json"])
def test_a_full_disk_at_the_end_costs_no_step(tmp_path, monkeypatch, place):
    recipe = tiny_recipe(tmp_path, training={"max_steps": 1})

    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(
            "clip_itm.runs.train." + {"save_pretrained": "shutil.copy", "write_json": "write_json"}[place], fail
        )
        with pytest.raises(ValueError, match="the run is trained, but its results could not be written: No space left"):
            train(recipe)
    assert not (Path(recipe.output_dir) / "results.json").exists()
    assert train(recipe)["steps"] == 1


# A folder that goes away


@pytest.mark.parametrize("how", ["deleted", "emptied", "replaced"])
def test_a_folder_that_goes_away_stops_the_run_at_the_next_checkpoint(tmp_path, monkeypatch, how):
    recipe = tiny_recipe(tmp_path, training={"epochs": 1, "save_every": 1})
    folder = Path(recipe.output_dir)

    def take_away(self, args, state, control, **kwargs):
        if state.global_step == 3:
            shutil.rmtree(folder)
            if how != "deleted":
                folder.mkdir()
            if how == "replaced":
                for name in ("recipe.yaml", "provenance.json"):
                    (folder / name).write_text("of another run")

    monkeypatch.setattr(FinishCallback, "on_step_begin", take_away)
    with pytest.raises(ValueError, match=r"was deleted or replaced while the run was going on: training stops"):
        train(recipe)
    left = {"deleted": [], "emptied": [], "replaced": ["provenance.json", "recipe.yaml"]}[how]
    assert sorted(path.name for path in folder.glob("*")) == left


# What is only shown


@pytest.fixture(scope="module")
def all_wrong(tmp_path_factory):
    """A run of photos with one caption each, every one of which is wrong; with a method that estimates that."""
    place = tmp_path_factory.mktemp("wrong")
    photos(place / "photos", count=24, captions=1)
    write_recipe(place, head={"kind": "npc", "rho": 0.5, "warmup_epochs": 1}, training={"epochs": 2, "max_steps": None})
    file = place / "recipe.yaml"
    pairs = load_splits(load_recipe(file).data)["train"].pairs
    for seed in range(100):
        noise = ["--noise.ratio", "1", "--noise.seed", f"{seed}"]
        if not load_noise(load_recipe(file, noise).noise, pairs).truth(pairs).any():
            return place, ["train", str(file), *noise]
    raise AssertionError("no draw leaves no caption where it was")


def test_a_run_of_wrong_pairs_alone_ends_and_is_shown(all_wrong, capsys):
    place, words = all_wrong
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is lost on the way, either
        warnings.filterwarnings("ignore", message=".*(mean cosine|random weights|could not be|too few to tell)")
        assert main(words) == 0
    results = json.loads((place / "run" / "results.json").read_text())
    assert (results["wrong_pairs"]["wrong"], results["wrong_pairs"]["auc"], results["wrong_pairs"]["precision"]) == (
        12,
        None,
        1,
    )
    card = (place / "run" / "best" / "README.md").read_text()
    assert "Of 12 training pairs 12 are wrong." in card
    assert main(["audit", "--run", str(place / "run")]) == 0
    assert main(["evaluate", str(place / "run"), "--json", str(place / "found.json")]) == 0
    compare = ["compare", *words[1:2], "--noise", "1", "--noise.seed", words[-1], "--out", str(place / "grid")]
    assert main(compare) == 0
    assert "| 1 | recipe | - | - | - | 1.000 |" in (place / "grid" / "comparison.md").read_text()
    capsys.readouterr()


@pytest.mark.parametrize("what", ["model_card", "draw_curves", "wrong_pairs_found"])
def test_nothing_that_is_only_shown_loses_a_finished_run(tmp_path, monkeypatch, what):
    recipe = tiny_recipe(tmp_path, head={"kind": "crcl", "frozen_epochs": 0}, training={"epochs": 1, "max_steps": 2})
    folder = Path(recipe.output_dir)

    def fail(*args, **kwargs):
        raise TypeError("unsupported format string passed to NoneType.__format__")

    with monkeypatch.context() as patch:
        patch.setattr(f"clip_itm.runs.train.{what}", fail)
        with pytest.warns(UserWarning, match=r"failed \(TypeError: unsupported format .*; "):
            results = train(recipe)
    assert json.loads((folder / "results.json").read_text()) == results
    assert (folder / "best" / "README.md").exists() == (what != "model_card")
    again = train(recipe)
    assert again == results
    assert results["best"]["all"]["metrics"]
    assert "fine-tuned for image-text matching" in (folder / "best" / "README.md").read_text()
    assert other_files(folder) == []


def test_a_figure_that_is_no_number_loses_no_results(tmp_path, monkeypatch):
    recipe = tiny_recipe(tmp_path, head={"kind": "crcl", "frozen_epochs": 0}, training={"epochs": 1, "max_steps": 2})
    monkeypatch.setattr("clip_itm.methods.crcl.trainer.auc", lambda *args: np.nan)
    entry = train(recipe)["method_history"][-1]
    assert entry["label_auc"] is None


def test_the_table_on_the_terminal_is_no_reason_to_fail(tmp_path, monkeypatch, capsys):
    recipe = tiny_recipe(tmp_path, training={"max_steps": 1})
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    monkeypatch.setattr("clip_itm.evaluation.report.terminal_table", lambda *args, **kwargs: 1 / 0)
    with pytest.warns(UserWarning, match=r"the table failed \(ZeroDivisionError.*all figures are in .*results.json"):
        assert main(["train", str(tmp_path / "recipe.yaml")]) == 0
