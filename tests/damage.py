"""Ways in which a file on a disk goes bad, for tests that want to see each of them found."""

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
