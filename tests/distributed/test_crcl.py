"""The batch of CRCL in one process against golden numbers, and in several against one."""

import numpy as np
import pytest

from support.distributed.crcl import all_cases, two_steps
from support.paths import GOLDEN
from support.processes import assert_same, run_script


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
    golden_file = GOLDEN / "crcl_dual_encoder.npz"
    found = run_script("crcl", processes, tmp_path / "found.npz", str(golden_file))
    expected = all_cases(golden("crcl_dual_encoder"))
    assert_same(found, expected, rtol=1e-10, atol=1e-12)
    assert all(np.abs(value).max() > 1e-6 for name, value in expected.items() if "grad" in name)
