"""The head of DivE in several processes equals one: losses, terms, and gradients of inputs and parameters."""

import numpy as np
import pytest
from distributed_dive import CASES, step
from test_distributed import HERE, launch


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_equal_one(tmp_path, processes):
    launch(processes, str(HERE / "distributed_dive.py"), str(tmp_path / "found.npz"))
    with np.load(tmp_path / "found.npz") as found:
        found = dict(found)
    assert found.pop("processes") == processes
    expected = {}
    for case in CASES:
        expected |= step(case)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-11, err_msg=name)
    for case in CASES:
        assert expected[f"{case} loss"] > 0.01
        for name in ("inputs 0", "inputs 3", "gradient similarity.image_sets.attention"):
            sizes = [np.abs(value).max() for key, value in expected.items() if key.startswith(f"{case} {name}")]
            assert max(sizes) > 1e-4, f"{case} {name}"
