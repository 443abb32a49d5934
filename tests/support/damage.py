"""Ways in which a file on a disk goes bad and a process ends, for tests that want to see each of them found."""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np


def flip(path: Path, seed: int = 0) -> None:
    """One bit, somewhere."""
    content = bytearray(path.read_bytes())
    bit = int(np.random.default_rng(seed).integers(8 * len(content)))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def truncate(path: Path, seed: int = 0) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(np.random.default_rng(seed).integers(1, len(content)))])


def empty(path: Path, seed: int = 0) -> None:
    path.write_bytes(b"")


DAMAGES = {"flipped": flip, "truncated": truncate, "empty": empty}


@contextlib.contextmanager
def damaged(path: Path, how: Callable[[Path, int], None], seed: int = 0):
    """A file that is bad for a while."""
    whole = path.read_bytes()
    try:
        how(path, seed)
        yield
    finally:
        path.write_bytes(whole)


def in_child(do: Callable[[], object]) -> int:
    """The id of a process that does it, with everything imported already; its status is 0 where `do` gave 0 or None."""
    if pid := os.fork():
        return pid
    status = 1
    try:
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        status = do() or 0
    finally:
        os._exit(status)


def status_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def seconds_of(do: Callable[[], object]) -> float:
    began = time.monotonic()
    assert status_of(in_child(do)) == 0
    return time.monotonic() - began


def kill_at(moment: float, do: Callable[[], object]) -> bool:
    """Begin it in a process and kill that after `moment` seconds; whether it was still at work."""
    pid = in_child(do)
    time.sleep(moment)
    os.kill(pid, signal.SIGKILL)
    return status_of(pid) == -signal.SIGKILL


KILLS = int(os.environ.get("CLIP_ITM_KILLS", "4"))  # of each command; 50 in a long test
