"""Losses over the global batch, in two processes against one."""

import numpy as np
import pytest
from distributed_scores import CASES, step
from test_distributed import HERE, launch


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    """Loss, gradients of features and weights, score map and running statistics, for each head and similarity."""
    launch(2, str(HERE / "distributed_scores.py"), str(tmp_path / "found.npz"))
    with np.load(tmp_path / "found.npz") as found:
        found = dict(found)
    assert found.pop("processes") == 2
    expected = {}
    for case in CASES:
        expected |= step(*case)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-12, err_msg=name)
    features = [value for name, value in expected.items() if name.endswith(("gradient images", "gradient texts"))]
    assert len(features) == 2 * len(CASES)
    assert all(np.abs(value).max() > 1e-6 for value in features)
