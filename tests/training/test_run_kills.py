"""Runs that are killed at random moments end as if nothing had been (more moments: CLIP_ITM_KILLS=50)."""

import os

import pytest

from support.forks import run_python
from support.killed_runs import HEADS
from support.processes import ENVIRONMENT


@pytest.mark.slow
@pytest.mark.parametrize("method", HEADS)
def test_sigkill_at_random_moments(tmp_path, method):
    moments = os.environ.get("CLIP_ITM_KILLS", "2")
    command = ["-m", "support.kill_runs", str(tmp_path), moments, f"{os.getpid()}", method]
    assert run_python(*command, env=ENVIRONMENT).count("the same end") == int(moments)
