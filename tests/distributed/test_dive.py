"""The head of DivE in several processes equals one: losses, terms, and gradients of inputs and parameters."""

import numpy as np
import pytest

from support.distributed.dive import CASES, all_cases
from support.processes import assert_same, run_script


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_equal_one(tmp_path, processes):
    found, expected = run_script("dive", processes, tmp_path / "found.npz"), all_cases()
    assert_same(found, expected, rtol=1e-9, atol=1e-11)
    for case in CASES:
        assert expected[f"{case} loss"] > 0.01
        for name in ("inputs 0", "inputs 3", "gradient similarity.image_sets.attention"):
            sizes = [np.abs(value).max() for key, value in expected.items() if key.startswith(f"{case} {name}")]
            assert max(sizes) > 1e-4, f"{case} {name}"
