"""Runs that are killed at random moments end as if nothing had been (more moments: CLIP_ITM_KILLS=50)."""

import os
import subprocess
import sys

import pytest

from support.killed_runs import HEADS
from support.processes import ENVIRONMENT


@pytest.mark.slow
@pytest.mark.parametrize("method", HEADS)
def test_sigkill_at_random_moments(tmp_path, method):
    moments = os.environ.get("CLIP_ITM_KILLS", "2")
    command = [sys.executable, "-m", "support.kill_runs", str(tmp_path), moments, f"{os.getpid()}", method]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("the same end") == int(moments)
