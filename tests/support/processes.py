"""Scripts that tests start in several processes: how they start and end, and how what they found is compared."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from clip_itm.distributed import leave_process_group, num_processes, process_state
from clip_itm.training.checkpoints import last_complete_checkpoint
from support.forks import Forked
from support.paths import ROOT, TESTS

SETTINGS = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
ENVIRONMENT = {**os.environ, **SETTINGS, "PYTHONPATH": f"{ROOT}{os.pathsep}{TESTS}"}
Found = dict[str, np.ndarray]


def start(processes: int, *words: str, **environment: str) -> list[Forked]:
    """The words of a Python command in `processes` gloo processes on the CPU, or as `environment` says, begun."""
    environment = ENVIRONMENT | environment
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        environment |= place | {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {} for rank in range(processes)]
    return [Forked(*words, cwd=ROOT, env=environment | rank) for rank in ranks]


def launch(processes: int, *words: str, **environment: str) -> str:
    """The same, run to the end; what they have printed."""
    started = start(processes, *words, **environment)
    try:
        while None in (found := [process.poll() for process in started]) and not any(found):
            time.sleep(0.01)
    finally:
        said = [process.output for process in started]
        for process in started:
            process.kill()
    assert found == [0] * processes, "\n".join(said)
    return "\n".join(said)


def torchrun(processes: int, *words: str) -> None:
    """The same with the launcher that users have, which takes its time."""
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", "0"]
    start += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
    done = subprocess.run([*start, *words], env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=600)
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
    """What the script `name` of support/distributed finds in so many processes."""
    launch(processes, "-m", f"support.distributed.{name}", *words, str(out))
    with np.load(out) as arrays:
        found = dict(arrays)
    assert found.pop("processes") == processes
    return found


def assert_same(found: Found, expected: Found, rtol: float, atol: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=rtol, atol=atol, err_msg=name)


def logged_losses(run: Path) -> list[float]:
    state = json.loads((last_complete_checkpoint(run) / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


def assert_same_run(method: str, one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    """What distributed_run.py saved of two runs is equal up to rounding, and no comparison of empty things."""
    assert one.keys() == other.keys()
    for name, expected in one.items():
        # a run adds up rounding; what is kept of each pair is float32
        tolerance = {"rtol": 1e-6, "atol": 1e-7} if expected.dtype == np.float32 else {"rtol": 1e-7, "atol": 1e-10}
        np.testing.assert_allclose(other[name], expected, **tolerance, err_msg=name)
    weights = [value for name, value in one.items() if name.startswith(("weights", "trial"))]
    assert {value.dtype for value in weights if value.dtype.kind == "f"} == {np.dtype("float64")}
    if method.startswith("npc"):
        ratio, weight = one["seen"]
        assert (~np.isnan(ratio)).sum() == 192
        assert 0 < np.mean(weight[~np.isnan(weight)] < 1) < 1
        assert 0 < len(one["bank clean"]) < 200
        moments = [name for name in one if name.startswith("step trial.") and name.endswith("exp_avg")]
        assert bool(moments) == (method != "npc-released"), "moments of the real optimiser are not kept twice"
        assert all(np.abs(one[name]).max() > 0 for name in moments)
    if method == "clip-guard":
        assert one["rate"] < 1
    if method == "crcl":
        assert 0 < (one["labels"] == 0).sum() < 150
        assert np.isnan(one["probabilities"]).sum() < 8
