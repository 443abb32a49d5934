"""The batch of CRCL in one process against golden numbers, and in several against one."""

import numpy as np
import pytest
from distributed_crcl import CASES, two_steps
from test_distributed import HERE, launch


@pytest.mark.parametrize("case", ["t05", "t01"])
def test_golden_dual_encoder(golden, case):
    arrays = golden("crcl_dual_encoder")
    found = two_steps(arrays, case)
    for name in ("p_pair", "y_used", "total", "grad_img", "grad_txt", "store_after"):
        np.testing.assert_allclose(
            found[f"{case}_0_{name}"], arrays[f"{case}_{name}"], rtol=1e-6, atol=1e-7, err_msg=name
        )


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3, 4])
def test_several_processes_equal_one(golden, tmp_path, processes):
    """Loss, gradients, labels and store of two steps; most pairs change their process between them."""
    arrays = golden("crcl_dual_encoder")
    golden_file = HERE / "golden" / "crcl_dual_encoder.npz"
    launch(processes, str(HERE / "distributed_crcl.py"), str(golden_file), str(tmp_path / "found.npz"))
    with np.load(tmp_path / "found.npz") as found:
        found = dict(found)
    assert found.pop("processes") == processes
    expected = {}
    for case in CASES:
        expected |= two_steps(arrays, case)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-10, atol=1e-12, err_msg=name)
    assert all(np.abs(value).max() > 1e-6 for name, value in expected.items() if "grad" in name)
