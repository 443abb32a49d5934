"""A run that was killed ends with the same weights, moments, labels and history, to the bit, as one that was not."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from clip_itm.runs.train import train
from clip_itm.training.checkpoints import last_complete_checkpoint
from support.forks import Forked
from support.killed_runs import EPOCHS, HEADS, STEPS, assert_same_end, final_state, interrupt_at, recipe_of
from support.tiny import tiny_recipe

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}


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
        pytest.param("robust", STEPS, id="robust, before q"),
        pytest.param("robust", STEPS + 2, id="robust, q estimated"),
        pytest.param("osa", STEPS - 2, id="osa, in the warm-up"),
        pytest.param("osa", STEPS + 2, id="osa, weights there"),
        pytest.param("aahr", STEPS + 2, id="aahr, before the graph"),
        pytest.param("aahr", 2 * STEPS, id="aahr, all terms"),
    ],
)
def test_an_interrupted_run_goes_on_as_if_nothing_had_been(tmp_path, whole_run, method, reached):
    recipe = recipe_of(tmp_path / "it", method, evaluate_every=4)
    interrupt_at(reached, recipe)
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


def start(recipe_file: Path) -> Forked:
    return Forked("-m", "clip_itm.cli", "train", str(recipe_file), env=ENVIRONMENT)


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
    assert process.wait() == 0, process.output

    file, killed = runs["killed"]
    process = start(file)
    deadline = time.time() + 300
    while not (killed / f"checkpoint-{step}" / "trainer_state.json").exists():
        assert process.poll() is None, process.output
        assert time.time() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "results.json").exists()
    reached = int(last_complete_checkpoint(killed).name.split("-")[1])
    assert step <= reached < EPOCHS[method] * STEPS
    assert reached % STEPS != 0, "the checkpoint must lie within an epoch"

    process = start(file)
    assert process.wait() == 0, process.output
    assert f"resuming from {killed}/checkpoint-{reached}" in process.output
    assert_same_end(killed, whole, method)


def test_half_written_checkpoints_are_passed_over(tmp_path):
    for step, state in ((2, "{}"), (4, "{}"), (6, '{"half'), (8, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    assert last_complete_checkpoint(tmp_path).name == "checkpoint-4"
    assert last_complete_checkpoint(tmp_path / "nothing") is None
