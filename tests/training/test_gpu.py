"""A GPU against the CPU, where there is one: `make test-gpu`. All other tests stay on the CPU."""

from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file

from support.paths import ROOT
from support.processes import assert_same_run, launch, logged_losses

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is to be used here (make test-gpu)"),
]
ON_GPU = {"ACCELERATE_USE_CPU": "false", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}


@pytest.mark.parametrize("method", ["clip", "npc", "npc-released", "crcl"])
def test_a_run_on_the_gpu_equals_one_on_the_cpu(tmp_path, method):
    """Whole epochs in float64: same bank or labels, same weights of pairs, same trial steps, same model."""
    found = {}
    for device, environment in (("cpu", {}), ("gpu", ON_GPU)):
        out = tmp_path / f"{device}.safetensors"
        launch(1, "-m", "support.distributed.run", method, str(tmp_path), str(out), **environment)
        found[device] = load_file(out)
    assert_same_run(method, found["cpu"], found["gpu"])


@pytest.mark.parametrize("method", ["clip", "npc", "crcl"])
def test_the_command_in_bf16_stays_near_the_cpu(tmp_path, method):
    words = ["--data.train_images", "40", "--data.val_images", "12", "--data.test_images", "12"]
    words += ["--data.cache_dir", str(tmp_path / "cache"), "--noise.ratio", "0.4", "--training.batch_size", "32"]
    words += ["--training.epochs", "3", "--training.learning_rate", "1e-4", "--training.log_every", "1"]
    words += ["--evaluation.bootstrap", "20"] + ["--head.rho", "0.5"] * (method == "npc")
    train = [str(ROOT / "recipes" / "train.py"), str(ROOT / "recipes" / "sample" / f"{method}.yaml")]
    launch(1, *train, *words, "--output_dir", str(tmp_path / "cpu"))
    launch(1, *train, *words, "--output_dir", str(tmp_path / "gpu"), **ON_GPU)
    cpu, gpu = (logged_losses(Path(tmp_path) / device) for device in ("cpu", "gpu"))
    assert len(gpu) == 18
    assert max(abs(a - b) for a, b in zip(cpu[:6], gpu[:6], strict=True)) < 0.05  # behind it NPC chooses its entries
