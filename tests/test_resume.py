"""A run that was killed ends with the same weights, moments, labels and history, to the bit, as one that was not."""

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

from clip_itm.recipe import Recipe
from clip_itm.runs.train import train
from clip_itm.training.callbacks import FinishCallback
from clip_itm.training.folder import last_complete_checkpoint

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
STEPS = 6  # of an epoch
HEADS = {
    "clip": {"kind": "clip"},
    "npc": {"kind": "npc", "warmup_epochs": 1, "rho": 0.5},
    # pieces of 2 and 3 epochs: labels are replaced in epoch 0, refined in epochs 1, 3 and 4
    "crcl": {
        "kind": "crcl",
        "schedules": [1, 2],
        "frozen_epochs": 1,
        "temperature": 0.2,
        "label_threshold": 0.03,
        "label_momentum": 0.5,
    },
    "polyloss": {"kind": "polyloss", "warmup_epochs": 1, "score_map": "affine"},
    # the queue is full after 2 steps, prototypes begin at step 3 and the graph at step 9
    "aahr": {
        "kind": "aahr",
        "embed_dim": 16,
        "num_heads": 2,
        "pooling_heads": 2,
        "prototypes": 8,
        "queue_length": 64,
        "prototypes_after": 0.5,
        "graph_after": 1.5,
        "momentum": 0.9,
    },
    # all negatives in epoch 0, the hardest from then on
    "dive": {
        "kind": "dive",
        "residual": "gated",
        "module": {"heads": 2, "head_dim": 8, "iterations": 2},
        "loss": {"warmup_epochs": 1},
    },
}
EPOCHS = {"clip": 6, "npc": 3, "crcl": 5, "polyloss": 2, "aahr": 3, "dive": 3}
COMPARED = {
    "clip": ("optimizer",),
    "npc": ("optimizer", "bank caption_entry", "npc_state seen", "npc_state trial."),
    "crcl": ("optimizer", "labels labels", "labels probabilities"),
    "polyloss": ("optimizer", "model head.score_map.is_set"),
    "aahr": ("optimizer", "aahr_state criterion.", "aahr_state queue.", "aahr_state momentum.", "aahr_state step"),
    "dive": ("optimizer", "model head.similarity"),
}


def recipe_of(folder: Path, method: str, evaluate_every: int | None) -> Recipe:
    folder.mkdir()
    return tiny_recipe(
        folder,
        head=HEADS[method],
        # dropout and word dropout make the global generator matter; random crops make the epoch matter
        data={"random_crop": 0.6},
        backbone={"word_dropout": 0.2, "image_dropout": 0.2, "text_dropout": 0.1},
        training={"epochs": EPOCHS[method], "save_every": 2, "evaluate_every": evaluate_every},
    )


def final_state(run: Path) -> dict[str, torch.Tensor]:
    """All numbers of the last checkpoint: weights, moments of both optimisers, rates, labels or bank."""
    checkpoint = last_complete_checkpoint(run)
    optimizer = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    state = {"rates": torch.tensor([group["lr"] for group in optimizer["param_groups"]])}
    for number, moments in optimizer["state"].items():
        state |= {f"optimizer {number} {name}": value for name, value in moments.items()}
    for path in checkpoint.glob("*.safetensors"):
        state |= {f"{path.stem} {name}": value for name, value in load_file(path).items()}
    for path in checkpoint.glob("*.npz"):
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files if file[name].dtype.kind in "if"}
        state |= {f"{path.stem} {name}": torch.from_numpy(value) for name, value in arrays.items()}
    return state


def assert_same_end(run: Path, whole: Path, method: str) -> None:
    found, expected = final_state(run), final_state(whole)
    assert found.keys() == expected.keys()
    for part in (*COMPARED[method], "rates", "model backbone"):
        assert any(name.startswith(part) for name in expected), f"{part} would not be compared"
    different = [
        name for name in expected if not torch.allclose(found[name], expected[name], rtol=0, atol=0, equal_nan=True)
    ]
    assert different == []
    results = [json.loads((folder / "results.json").read_text()) for folder in (run, whole)]
    for history in ("dev_history", "method_history", "best_step", "best_dev_rsum"):
        assert results[0][history] == results[1][history], history


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """Uninterrupted runs, made when a test first asks for one."""
    runs: dict[str, Path] = {}

    def run(method: str) -> Path:
        if method not in runs:
            recipe = recipe_of(tmp_path_factory.mktemp("whole") / "it", method, evaluate_every=4)
            train(recipe)
            runs[method] = Path(recipe.output_dir)
        return runs[method]

    return run


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.* of the labels are below")
@pytest.mark.parametrize(
    ("method", "reached"),
    [
        pytest.param("npc", STEPS, id="npc, warm-up done"),
        pytest.param("npc", STEPS + 2, id="npc, within an epoch"),
        pytest.param("npc", 2 * STEPS, id="npc, an epoch done"),
        pytest.param("polyloss", STEPS + 2, id="polyloss, map set"),
        pytest.param("crcl", STEPS + 2, id="crcl, refining"),
        pytest.param("crcl", 2 * STEPS, id="crcl, first piece done"),
        pytest.param("crcl", 2 * STEPS + 2, id="crcl, frozen in the second piece"),
        pytest.param("aahr", STEPS + 2, id="aahr, before the graph"),
        pytest.param("aahr", 2 * STEPS, id="aahr, all terms"),
    ],
)
def test_an_interrupted_run_goes_on_as_if_nothing_had_been(tmp_path, monkeypatch, whole_run, method, reached):
    recipe = recipe_of(tmp_path / "it", method, evaluate_every=4)

    def interrupt(self, args, state, control, **kwargs):
        if state.global_step == reached:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FinishCallback, "on_step_begin", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(recipe)
    run = Path(recipe.output_dir)
    assert last_complete_checkpoint(run).name == f"checkpoint-{reached}"
    train(recipe)
    assert_same_end(run, whole_run(method), method)


@pytest.mark.parametrize("max_steps", [STEPS - 1, STEPS], ids=["within an epoch", "at its end"])
def test_a_run_that_was_killed_behind_its_last_step_takes_no_other(tmp_path, max_steps):
    training = {"max_steps": max_steps, "schedule": "constant", "warmup": 0}
    recipe = tiny_recipe(tmp_path, head=HEADS["npc"] | {"warmup_epochs": 0}, training=training)
    results = train(recipe)
    run = Path(recipe.output_dir)
    before = final_state(run)
    (run / "results.json").unlink()
    again = train(recipe)
    assert (again["steps"], again["best"], again["last"]) == (max_steps, results["best"], results["last"])
    assert again["method_history"] == results["method_history"]
    after = final_state(run)
    assert all(torch.allclose(after[name], before[name], rtol=0, atol=0, equal_nan=True) for name in before)


def start(recipe_file: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "clip_itm.cli", "train", str(recipe_file)]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "step"),
    # NPC's trial steps go on in epoch 1; CRCL refines in epoch 3, the second of the second piece; AAHR's graph begins
    [("clip", STEPS + 2), ("npc", STEPS + 2), ("crcl", 3 * STEPS + 2), ("aahr", STEPS + 4), ("dive", STEPS + 2)],
)
def test_sigkill_in_mid_epoch_and_resume_to_the_bit(tmp_path, method, step):
    runs = {}
    for name in ("whole", "killed"):
        recipe = recipe_of(tmp_path / name, method, evaluate_every=6)
        file = tmp_path / name / "recipe.yaml"
        file.write_text(recipe.to_yaml())
        runs[name] = (file, Path(recipe.output_dir))

    file, whole = runs["whole"]
    process = start(file)
    output = process.communicate(timeout=600)[0]
    assert process.returncode == 0, output

    file, killed = runs["killed"]
    process = start(file)
    deadline = time.time() + 300
    while not (killed / f"checkpoint-{step}" / "trainer_state.json").exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.time() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (killed / "results.json").exists()
    reached = int(last_complete_checkpoint(killed).name.split("-")[1])
    assert step <= reached < EPOCHS[method] * STEPS
    assert reached % STEPS != 0, "the checkpoint must lie within an epoch"

    process = start(file)
    output = process.communicate(timeout=600)[0]
    assert process.returncode == 0, output
    assert f"resuming from {killed}/checkpoint-{reached}" in output
    assert_same_end(killed, whole, method)


def test_half_written_checkpoints_are_passed_over(tmp_path):
    for step, state in ((2, "{}"), (4, "{}"), (6, '{"half'), (8, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    assert last_complete_checkpoint(tmp_path).name == "checkpoint-4"
    assert last_complete_checkpoint(tmp_path / "nothing") is None
