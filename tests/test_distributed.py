"""Two processes against one: gradients of the global batch, and a whole run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny import TINY_CLIP, tiny_recipe

from clip_itm.backbones.configuration import OpenClipBackbone

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def launch(processes: int, *words: str) -> None:
    """Run a script in `processes` gloo processes on the CPU."""
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", "0"]
        start += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
    done = subprocess.run([*start, *words], env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


def logged_losses(run: Path) -> list[float]:
    state = json.loads((sorted(run.glob("checkpoint-*"))[-1] / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


@pytest.mark.slow
def test_gradients_of_the_global_batch(tmp_path):
    config = OpenClipBackbone(model="tiny", model_config_dict={"model_cfg": TINY_CLIP})
    (tmp_path / "config.json").write_text(config.model_dump_json())
    found = {}
    for processes in (1, 2):
        out = tmp_path / f"{processes}.npz"
        launch(processes, str(HERE / "distributed_gradients.py"), str(tmp_path / "config.json"), str(out))
        with np.load(out) as arrays:
            found[processes] = dict(arrays)
    assert found[1].keys() == found[2].keys()
    assert all(value.dtype == np.float64 for value in found[1].values())
    for name, expected in found[1].items():
        np.testing.assert_allclose(found[2][name], expected, rtol=1e-10, atol=1e-12, err_msg=name)
        assert np.abs(expected).max() > 1e-8, f"{name} has no gradient: the comparison would be empty"


@pytest.mark.slow
def test_a_run_in_two_processes_equals_one(tmp_path):
    """Two epochs of the trainer in float64: same batches, same loss, same steps."""
    found = {}
    for processes in (1, 2):
        out = tmp_path / f"{processes}.safetensors"
        launch(processes, str(HERE / "distributed_run.py"), str(tmp_path), str(out))
        found[processes] = load_file(out)
    assert found[1].keys() == found[2].keys()
    for name, expected in found[1].items():
        assert expected.dtype == np.float64
        np.testing.assert_allclose(found[2][name], expected, rtol=1e-7, atol=1e-10, err_msg=name)


@pytest.mark.slow
def test_the_command_in_two_processes(tmp_path):
    recipe = tiny_recipe(tmp_path, training={"epochs": 2, "batches": "unique", "learning_rate": 1e-4})
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    script = str(HERE.parent / "recipes" / "train.py")
    launch(2, script, str(tmp_path / "recipe.yaml"), "--training.log_every", "1")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["provenance"]["machine"]["processes"] == 2
    launch(
        1, script, str(tmp_path / "recipe.yaml"), "--training.log_every", "1", "--output_dir", str(tmp_path / "alone")
    )
    losses = [logged_losses(tmp_path / place) for place in ("run", "alone")]
    assert len(losses[0]) == 6
    # a process that took the whole batch for its own would be off by ln 2
    np.testing.assert_allclose(*losses, atol=0.02)
