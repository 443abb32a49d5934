"""Batch norm over valid rows in several processes against one."""

import pytest

from support.distributed.batch_norm import two_steps
from support.processes import assert_same, run_script


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_batch_norm_of_several_processes_is_that_of_one(tmp_path, processes):
    found = run_script("batch_norm", processes, tmp_path / "found.npz")
    assert_same(found, two_steps(), rtol=1e-10, atol=1e-12)
