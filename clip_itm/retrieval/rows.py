"""Tensors of an index in memory or mapped from a file, and the files that hold them.

A file of tensors also holds, for each, the XXH3-64 of its bytes in blocks of 64 KiB. `index.json` has the checksum of
the header and of these numbers, which is compared when the file is opened; a block is compared before it is first used.
So nothing is read only to be compared, and no flipped bit gets into a score.
"""

import json
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import numpy as np
import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from clip_itm.files import replacing

BLOCK = 2**16  # bytes per checksum
CHECKSUMS = "_xxh3"  # suffix to the name of their tensor
SAFETENSORS_TYPES = {torch.float32: "F32", torch.float16: "F16", torch.uint8: "U8", torch.int64: "I64"}
REMEDY = "restore it from a copy, or index the gallery again"
Parts = tuple[torch.dtype, tuple[int, ...], Iterable[Tensor]]
"""Type and shape of a tensor, and its rows in parts, which need not fit in memory together."""


class Rows:
    """A tensor [n, ...] by its rows (a number, a slice or an int64 tensor of numbers).

    `checksums` int64 [blocks]: of a tensor that is mapped from the file `path`; None if there is nothing to compare.
    Reading raises ValueError, naming the file, if a block is not what was saved.
    """

    def __init__(self, tensor: Tensor, checksums: Tensor | None = None, path: Path | None = None):
        self.shape, self.dtype = tensor.shape, tensor.dtype
        self._tensor, self._path = tensor, path
        self._row_bytes = int(np.prod(tensor.shape[1:])) * tensor.dtype.itemsize
        self._checksums = None if checksums is None else checksums.numpy().view(np.uint64)
        self._unseen = None if checksums is None else np.ones(len(checksums), bool)

    def __len__(self) -> int:
        return len(self._tensor)

    def __getitem__(self, rows: int | slice | Tensor) -> Tensor:
        if self._unseen is not None:
            self._check(rows)
        return self._tensor[rows]

    def _check(self, rows: int | slice | Tensor) -> None:
        if isinstance(rows, Tensor):
            # +1 where a row begins, -1 after its end: above 0 are the blocks that any row touches
            steps = np.zeros(len(self._unseen) + 1, np.int64)
            np.add.at(steps, rows.numpy() * self._row_bytes // BLOCK, 1)
            np.add.at(steps, -((rows.numpy() + 1) * -self._row_bytes // BLOCK), -1)
            self._check_blocks(np.flatnonzero((steps.cumsum()[:-1] > 0) & self._unseen))
            return
        first, end, _ = rows.indices(len(self)) if isinstance(rows, slice) else (rows, rows + 1, 1)
        begin = first * self._row_bytes // BLOCK
        self._check_blocks(begin + np.flatnonzero(self._unseen[begin : -(end * -self._row_bytes // BLOCK)]))

    def _check_blocks(self, blocks: np.ndarray) -> None:
        if not len(blocks):
            return
        content = self._tensor.flatten().view(torch.uint8).numpy()
        for block in blocks.tolist():
            if xxhash.xxh3_64_intdigest(content[block * BLOCK : (block + 1) * BLOCK]) != self._checksums[block]:
                raise ValueError(f"{self._path} is not what was saved: a checksum in it has changed; {REMEDY}")
        self._unseen[blocks] = False


class _Checksums:
    """The checksums of the blocks of what is fed to it."""

    def __init__(self):
        self.of_blocks, self._digest, self._filled = [], xxhash.xxh3_64(), 0

    def update(self, data: memoryview) -> None:
        data = data.cast("B")
        while data:
            some = data[: BLOCK - self._filled]
            self._digest.update(some)
            self._filled += len(some)
            data = data[len(some) :]
            if self._filled == BLOCK:
                self._close()

    def _close(self) -> None:
        self.of_blocks.append(self._digest.intdigest())
        self._digest.reset()
        self._filled = 0

    def tensor(self) -> Tensor:
        if self._filled:
            self._close()
        return torch.from_numpy(np.array(self.of_blocks, np.uint64).view(np.int64))


def write_tensors(path: Path, tensors: dict[str, Parts]) -> dict:
    """Write a safetensors file; returns its {name, bytes, checksums} for index.json."""
    sizes = {name: int(np.prod(shape)) * dtype.itemsize for name, (dtype, shape, _) in tensors.items()}
    types = {name: (dtype, shape) for name, (dtype, shape, _) in tensors.items()}
    types |= {name + CHECKSUMS: (torch.int64, (-(size // -BLOCK),)) for name, size in sizes.items()}
    head = _head(types)
    digest = xxhash.xxh3_128(head)
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(head)
        checksums = []
        for _, _, parts in tensors.values():
            own = _Checksums()
            for part in parts:
                data = part.contiguous().numpy().reshape(-1).data
                file.write(data)
                own.update(data)
            checksums.append(own.tensor().numpy().tobytes())
        digest.update(b"".join(checksums))
        file.write(b"".join(checksums))
    return {"name": path.name, "bytes": path.stat().st_size, "checksums": digest.hexdigest()}


def _head(types: dict[str, tuple[torch.dtype, tuple[int, ...]]]) -> bytes:
    header, end = {}, 0
    for name, (dtype, shape) in types.items():
        start, end = end, end + int(np.prod(shape)) * dtype.itemsize
        header[name] = {"dtype": SAFETENSORS_TYPES[dtype], "shape": shape, "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # the data begin at a multiple of 8
    return len(encoded).to_bytes(8, "little") + encoded


def read_tensors(path: Path, checksums: str | None) -> dict[str, Rows]:
    """The tensors of a file, mapped. `checksums` is what index.json says about it, None for a file of version 1."""
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path} is not a safetensors file ({error}); {REMEDY}") from None
    if checksums is None:
        return {name: Rows(tensor) for name, tensor in tensors.items()}
    names = [name for name in tensors if name + CHECKSUMS in tensors]
    with path.open("rb") as file:
        size = file.read(8)
        head = size + file.read(int.from_bytes(size, "little"))
    tables = (tensors[name + CHECKSUMS].numpy() for name in _in_file_order(head) if name in names)
    digest = xxhash.xxh3_128()
    for data in chain([head], tables):
        digest.update(data)
    if digest.hexdigest() != checksums:
        raise ValueError(f"{path} is not what was saved: its checksums differ from those in index.json; {REMEDY}")
    return {name: Rows(tensors[name], tensors[name + CHECKSUMS], path) for name in names}


def _in_file_order(head: bytes) -> list[str]:
    return list(json.loads(head[8:]))
