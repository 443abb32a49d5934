"""A part of a gallery that never changes: vectors, embeddings and items, in memory or mapped from files."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import torch
from torch import Tensor

from clip_itm.retrieval.items import Item

ITEM_COLUMNS = pa.schema([("id", pa.string()), ("path", pa.string()), ("caption", pa.string())])


@dataclass(frozen=True, eq=False)
class Segment:
    """`vectors` [n, D]; `embeddings` [n, ...] where they are more than the vectors; `table` has n rows of ITEM_COLUMNS.

    `thumbnails`: all JPEGs in one uint8 tensor; number k is `thumbnails[offsets[k] : offsets[k + 1]]`, none if empty.
    """

    vectors: Tensor
    embeddings: Tensor | None
    table: pa.Table
    thumbnails: Tensor
    offsets: Tensor

    def __len__(self) -> int:
        return len(self.vectors)

    def item(self, row: int) -> Item:
        first, end = self.offsets[row : row + 2].tolist()
        thumbnail = self.thumbnails[first:end].numpy().tobytes() or None
        return Item(**self.table.slice(row, 1).to_pylist()[0], thumbnail=thumbnail)

    def embedding(self, row: int) -> Tensor:
        return (self.vectors if self.embeddings is None else self.embeddings)[row]


def make_segment(items: Sequence[Item], vectors: Tensor, embeddings: Tensor | None) -> Segment:
    table = pa.table([[getattr(item, name) for item in items] for name in ITEM_COLUMNS.names], schema=ITEM_COLUMNS)
    jpegs = [item.thumbnail or b"" for item in items]
    lengths = torch.tensor([0, *map(len, jpegs)])
    joined = torch.frombuffer(bytearray(b"".join(jpegs)), dtype=torch.uint8) if any(jpegs) else torch.empty(0).byte()
    return Segment(vectors, embeddings, table, joined, lengths.cumsum(0))
