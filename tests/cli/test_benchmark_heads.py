"""The benchmark of heads: every case runs, and what is compared computes the same."""

import importlib.util
from argparse import Namespace

import pytest
import torch

from clip_itm.methods.polyloss.loss import Weighting
from support.paths import ROOT

FILE = ROOT / "benchmarks" / "heads.py"
SMALL_AAHR = {"kind": "aahr", "embed_dim": 16, "num_heads": 2, "prototypes": 4, "queue_length": 8}
SMALL = Namespace(device="cpu", batch=4, images=3, width=16, regions=5, words=4, rounds=2)


def load_benchmark():
    spec = importlib.util.spec_from_file_location("benchmark_heads", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


benchmark = load_benchmark()


def test_the_loop_over_samples_is_the_loss_of_the_matrix():
    generator = torch.Generator().manual_seed(0)
    scores = (0.3 + 0.3 * torch.randn(24, 24, generator=generator)).double().requires_grad_()
    losses = [loss(scores, 0.2, Weighting()) for loss in (benchmark.loop_over_samples, benchmark.matrix_loss)]
    gradients = [torch.autograd.grad(loss, scores)[0] for loss in losses]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients)
    assert gradients[0].count_nonzero() > 24


@pytest.mark.parametrize("name", benchmark.HEADS)
def test_every_head_is_measured(name, monkeypatch):
    monkeypatch.setitem(benchmark.HEADS, "aahr", SMALL_AAHR)  # the published one is 1,024 wide
    step, evaluation = benchmark.measure_step(name, SMALL), benchmark.measure_evaluation(name, SMALL)
    assert (len(step["all_seconds"]), len(evaluation["all_seconds"])) == (2, 1)
    assert min(step["seconds"], evaluation["seconds"]) > 0
