"""A part of a gallery that never changes: vectors, embeddings and items, in memory or mapped from files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from clip_itm.retrieval.items import Item
from clip_itm.retrieval.rows import Rows

ITEM_COLUMNS = pa.schema(
    [
        ("id", pa.string()),
        ("path", pa.string()),
        ("caption", pa.string()),
        ("content", pa.uint64()),
        ("stamp", pa.uint64()),
    ]
)
ROWS_AT_ONCE = 4096  # copied at a time: 8 MiB of vectors of 512


@dataclass(eq=False)
class Segment:
    """`vectors` [n, D]; `embeddings` [n, ...], None if they are the vectors; `table` has n rows of ITEM_COLUMNS.

    `jpegs` uint8: all thumbnails; that of row k is `jpegs[offsets[k] : offsets[k + 1]]`, and there is none if empty.
    `files`: what index.json says about its files; None while it is in memory only.
    """

    vectors: Rows
    embeddings: Rows | None
    table: pa.Table
    jpegs: Rows
    offsets: Tensor
    files: dict | None = None
    _resident: Tensor | None = None

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def ids(self) -> list[str]:
        return self.table["id"].to_pylist()

    @property
    def shapes(self) -> tuple:
        """Of one vector and of one embedding."""
        return tuple(self.vectors.shape[1:]), None if self.embeddings is None else tuple(self.embeddings.shape[1:])

    def item(self, row: int) -> Item:
        values = {
            name: column[row].as_py() for name, column in zip(ITEM_COLUMNS.names, self.table.columns, strict=True)
        }
        return Item(**values, thumbnail=self.thumbnail(row).numpy().tobytes() or None if len(self.jpegs) else None)

    def items(self, rows: np.ndarray, thumbnails: bool) -> list[Item]:
        """Many at once, fast without their thumbnails."""
        if thumbnails and len(self.jpegs):
            return [self.item(row) for row in rows.tolist()]
        # from a buffer: converting a NumPy array makes pyarrow import pandas
        buffer = pa.py_buffer(np.ascontiguousarray(rows, np.int64))
        taken = self.table.take(pa.Array.from_buffers(pa.int64(), len(rows), [None, buffer]))
        return [Item(**values) for values in taken.to_pylist()]

    def thumbnail(self, row: int) -> Tensor:
        first, end = self.offsets[row : row + 2].tolist()
        return self.jpegs[first:end]

    def embedding(self, row: int) -> Tensor:
        return (self.vectors if self.embeddings is None else self.embeddings)[row]

    def vectors_on(self, device: torch.device) -> Rows | Tensor:
        """The vectors, which stay on a device once they were needed there."""
        if device.type == "cpu":
            return self.vectors
        if self._resident is None:
            self._resident = self.vectors[:].to(device)
        return self._resident


def make_segment(items: Sequence[Item], vectors: Tensor, embeddings: Tensor | None) -> Segment:
    table = pa.table([[getattr(item, name) for item in items] for name in ITEM_COLUMNS.names], schema=ITEM_COLUMNS)
    jpegs = [item.thumbnail or b"" for item in items]
    offsets = torch.tensor([0, *map(len, jpegs)]).cumsum(0)
    joined = torch.from_numpy(np.frombuffer(b"".join(jpegs), np.uint8).copy())
    return _in_memory(vectors, embeddings, table, joined, offsets)


def _in_memory(vectors: Tensor, embeddings: Tensor | None, table: pa.Table, jpegs: Tensor, offsets: Tensor) -> Segment:
    return Segment(Rows(vectors), None if embeddings is None else Rows(embeddings), table, Rows(jpegs), offsets)


class Selection(NamedTuple):
    """Rows of several segments, in order: `rows` int64 for each of `segments`. What it yields comes in small parts."""

    segments: Sequence[Segment]
    rows: Sequence[Tensor]

    def __len__(self) -> int:
        return sum(map(len, self.rows))

    def parts(self) -> Iterator[tuple[Segment, Tensor]]:
        for segment, rows in zip(self.segments, self.rows, strict=True):
            for some in rows.split(ROWS_AT_ONCE):
                yield segment, some

    def vectors(self) -> Iterator[Tensor]:
        return (segment.vectors[rows] for segment, rows in self.parts())

    def embeddings(self) -> Iterator[Tensor]:
        return (segment.embeddings[rows] for segment, rows in self.parts())

    def jpegs(self) -> Iterator[Tensor]:
        return (segment.thumbnail(row) for segment, rows in self.parts() for row in rows.tolist())

    def offsets(self) -> Tensor:
        lengths = [segment.offsets.diff()[rows] for segment, rows in zip(self.segments, self.rows, strict=True)]
        return torch.cat([torch.zeros(1, dtype=torch.int64), *lengths]).cumsum(0)

    def table(self) -> pa.Table:
        pairs = zip(self.segments, self.rows, strict=True)
        return pa.concat_tables([segment.table.take(rows.numpy()) for segment, rows in pairs]).combine_chunks()

    def segment(self) -> Segment:
        """All rows in one segment, in memory."""
        embeddings = None if self.segments[0].embeddings is None else torch.cat(list(self.embeddings()))
        jpegs = torch.cat([torch.empty(0, dtype=torch.uint8), *self.jpegs()])
        return _in_memory(torch.cat(list(self.vectors())), embeddings, self.table(), jpegs, self.offsets())
