"""The losses of AAHR in several processes against one."""

import numpy as np
import pytest

from clip_itm.methods.aahr import triplet
from support.distributed.aahr import PARTS, hardest, two_steps
from support.processes import assert_same, run_script


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_equal_one(tmp_path, monkeypatch, processes):
    """All terms, gradients of all parameters, queue and running statistics."""
    monkeypatch.setattr(triplet, "draw_negatives", hardest)
    found = run_script("aahr", processes, tmp_path / "found.npz")
    expected = two_steps()
    assert_same(found, expected, rtol=1e-9, atol=1e-11)
    assert {f"{step} {part}" for step in range(2) for part in PARTS} - {"0 queue"} <= expected.keys()
    gradients = {name: np.abs(value).max() for name, value in expected.items() if " grad " in name}
    assert len(gradients) > 150
    # a bias before a batch norm has none
    assert {name[2:] for name, value in gradients.items() if value < 1e-8} == {
        "grad similarity.image_encoder.projection.mlp.hidden.bias"
    }
