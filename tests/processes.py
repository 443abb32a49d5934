"""Scripts that tests start in several processes: how they start and end, and how what they found is compared."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from clip_itm.distributed import leave_process_group, num_processes, process_state

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
Found = dict[str, np.ndarray]


def launch(processes: int, *words: str, **environment: str) -> None:
    """Run a script in `processes` gloo processes on the CPU, or as `environment` says."""
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", "0"]
        start += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
    done = subprocess.run(
        [*start, *words],
        env=ENVIRONMENT | environment,
        cwd=HERE.parent,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def save_from_first(find: Callable[[], Found], out: str) -> None:
    """What such a script does: call `find` in every process, save what it found in the first one, and end in order."""
    state = process_state()
    found = find()
    if state.is_main_process:
        np.savez(out, processes=num_processes(), **found)
    state.wait_for_everyone()
    leave_process_group()  # here, where nothing refers to what `find` wrapped any more


def run_script(name: str, processes: int, out: Path, *words: str) -> Found:
    """What the script `name` of this folder finds in so many processes."""
    launch(processes, str(HERE / name), *words, str(out))
    with np.load(out) as arrays:
        found = dict(arrays)
    assert found.pop("processes") == processes
    return found


def assert_same(found: Found, expected: Found, rtol: float, atol: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=rtol, atol=atol, err_msg=name)
