"""A run that was killed ends with the same weights, to the bit, as one that was not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_recipe

from clip_itm.training.trainer import last_complete_checkpoint

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}


def start(recipe_file: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "clip_itm.cli", "train", str(recipe_file)]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def final_weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(last_complete_checkpoint(run) / "model.safetensors")


@pytest.mark.slow
def test_sigkill_in_mid_epoch_and_resume_to_the_bit(tmp_path):
    runs = {}
    for name in ("whole", "killed"):
        folder = tmp_path / name
        folder.mkdir()
        # dropout and word dropout make the global generator matter; random crops make the epoch matter
        recipe = tiny_recipe(
            folder,
            data={"random_crop": 0.6},
            training={"epochs": 6, "save_every": 2, "evaluate_every": 6},
            backbone={"word_dropout": 0.2, "image_dropout": 0.2, "text_dropout": 0.1},
        )
        file = folder / "recipe.yaml"
        file.write_text(recipe.to_yaml())
        runs[name] = (file, Path(recipe.output_dir))

    file, whole = runs["whole"]
    process = start(file)
    output = process.communicate(timeout=600)[0]
    assert process.returncode == 0, output

    file, killed = runs["killed"]
    process = start(file)
    deadline = time.time() + 300
    while not (killed / "checkpoint-8" / "trainer_state.json").exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.time() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (killed / "results.json").exists()
    reached = int(last_complete_checkpoint(killed).name.split("-")[1])
    assert 8 <= reached < 36
    assert reached % 6 != 0, "the checkpoint must lie within an epoch"

    process = start(file)
    output = process.communicate(timeout=600)[0]
    assert process.returncode == 0, output
    assert f"resuming from {killed}/checkpoint-{reached}" in output

    expected, found = final_weights(whole), final_weights(killed)
    assert expected.keys() == found.keys()
    different = [name for name in expected if not torch.equal(expected[name], found[name])]
    assert different == []


def test_half_written_checkpoints_are_passed_over(tmp_path):
    for step, state in ((2, "{}"), (4, "{}"), (6, '{"half'), (8, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    assert last_complete_checkpoint(tmp_path).name == "checkpoint-4"
    assert last_complete_checkpoint(tmp_path / "nothing") is None
