"""A run that was killed ends with the same weights, labels and moments, to the bit, as one that was not."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_recipe

from clip_itm.training.callbacks import FinishCallback
from clip_itm.training.run import train
from clip_itm.training.trainer import last_complete_checkpoint

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
# dropout and word dropout make the global generator matter; random crops make the epoch matter
RANDOM = {
    "data": {"random_crop": 0.6},
    "backbone": {"word_dropout": 0.2, "image_dropout": 0.2, "text_dropout": 0.1},
}
HEADS = {
    "clip": {"kind": "clip"},
    "npc": {"kind": "npc", "warmup_epochs": 1, "rho": 0.5},
    # pieces of 2 and 3 (or 4) epochs; labels are refined from the second epoch on
    "crcl": {"kind": "crcl", "frozen_epochs": 1, "temperature": 0.1},
}


def recipe_of(folder: Path, method: str, epochs: int, **training):
    folder.mkdir()
    head = dict(HEADS[method])
    if method == "crcl":
        head["schedules"] = [1, epochs - 3]
    return tiny_recipe(folder, head=head, training={"epochs": epochs, **training}, **RANDOM)


def final_state(run: Path) -> dict[str, torch.Tensor]:
    """Everything that the last checkpoint holds: weights, both optimisers, labels or bank, the rate."""
    checkpoint = last_complete_checkpoint(run)
    state = load_file(checkpoint / "model.safetensors")
    for path in sorted(checkpoint.glob("*.safetensors")):
        state |= {f"{path.stem} {name}": value for name, value in load_file(path).items()}
    for path in sorted(checkpoint.glob("*.npz")):
        with np.load(path, allow_pickle=False) as arrays:
            values = {name: arrays[name] for name in arrays.files}
        state |= {f"{path.stem} {n}": torch.from_numpy(v) for n, v in values.items() if v.dtype.kind in "if"}
    optimizer = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    for number, moments in optimizer["state"].items():
        state |= {f"optimizer {number} {name}": value for name, value in moments.items()}
    rates = [group["lr"] for group in optimizer["param_groups"]]
    return state | {"rates": torch.tensor(rates)}


def assert_equal_runs(killed: Path, whole: Path, expected_parts: tuple[str, ...]) -> None:
    found, expected = final_state(killed), final_state(whole)
    assert expected.keys() == found.keys()
    for part in expected_parts:
        assert any(name.startswith(part) for name in expected), f"{part} is not compared"
    different = [name for name in expected if not _equal(expected[name], found[name])]
    assert different == []
    histories = [json.loads((run / "results.json").read_text()) for run in (killed, whole)]
    for history in ("dev_history", "method_history"):
        assert histories[0][history] == histories[1][history], history


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    nan = one.isnan() & other.isnan()
    return bool((nan | (one == other)).all())


PARTS = {
    "clip": ("optimizer",),
    "npc": ("optimizer", "bank image_entry", "npc_state seen", "npc_state trial."),
    "crcl": ("optimizer", "labels labels", "labels probabilities"),
}


@pytest.fixture(scope="module")
def whole_runs(tmp_path_factory):
    """Uninterrupted runs, by method and saving rhythm; each is made when it is first asked for."""
    runs = {}

    def run(method: str, saving: str) -> Path:
        if (method, saving) not in runs:
            folder = tmp_path_factory.mktemp("whole") / "it"
            recipe = recipe_of(folder, method, EPOCHS[method], **SAVING[saving])
            train(recipe)
            runs[method, saving] = Path(recipe.output_dir)
        return runs[method, saving]

    return run


EPOCHS = {"clip": 2, "npc": 3, "crcl": 5}
SAVING = {"evaluated by epoch": {"save_every": 2}, "evaluated by step": {"save_every": 2, "evaluate_every": 4}}


@pytest.mark.parametrize("saving", SAVING)
@pytest.mark.parametrize(
    ("method", "steps"),
    [("npc", 6), ("npc", 8), ("npc", 12), ("crcl", 8), ("crcl", 12), ("crcl", 14), ("crcl", 20), ("clip", 6)],
)
def test_an_interrupted_run_goes_on_as_if_nothing_had_been(tmp_path, monkeypatch, whole_runs, method, steps, saving):
    """Epochs have 6 steps. NPC: the end of the warm-up, within an epoch, the end of an epoch. CRCL: labels
    refined in the first piece, the end of that piece, the frozen epoch and a refining one of the second piece.
    """
    recipe = recipe_of(tmp_path / "it", method, EPOCHS[method], **SAVING[saving])

    def interrupt(self, args, state, control, **kwargs):
        if state.global_step == steps:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FinishCallback, "on_step_begin", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(recipe)
    run = Path(recipe.output_dir)
    assert last_complete_checkpoint(run).name == f"checkpoint-{steps}"
    train(recipe)
    assert_equal_runs(run, whole_runs(method, saving), PARTS[method])
