"""Losses over the global batch, in two processes against one."""

import numpy as np
import pytest

from support.distributed.scores import CASES, all_cases
from support.processes import assert_same, run_script


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    """Loss, gradients of features and weights, score map and running statistics, for each head and similarity."""
    found, expected = run_script("scores", 2, tmp_path / "found.npz"), all_cases()
    assert_same(found, expected, rtol=1e-9, atol=1e-12)
    features = [value for name, value in expected.items() if name.endswith(("gradient images", "gradient texts"))]
    assert len(features) == 2 * len(CASES)
    assert all(np.abs(value).max() > 1e-6 for value in features)
