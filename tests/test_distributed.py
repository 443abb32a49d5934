"""Two processes against one: gradients of the global batch, and a whole run."""

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
    """Same batches, same loss, same steps: only the order of float32 sums differs."""
    found = {}
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        recipe = tiny_recipe(folder, training={"epochs": 2, "learning_rate": 1e-4})
        (folder / "recipe.yaml").write_text(recipe.to_yaml())
        launch(processes, str(HERE.parent / "recipes" / "train.py"), str(folder / "recipe.yaml"))
        found[processes] = load_file(sorted((folder / "run").glob("checkpoint-*"))[-1] / "model.safetensors")
    for name, expected in found[1].items():
        np.testing.assert_allclose(found[2][name], expected, rtol=1e-3, atol=2e-5, err_msg=name)
