"""The items of an index by position and by id, and which of them are deleted."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from clip_itm.retrieval.base import check_known_ids, check_same_shapes
from clip_itm.retrieval.exact import BLOCK_BYTES, Block
from clip_itm.retrieval.items import Item
from clip_itm.retrieval.segments import Segment, Selection


class Gallery:
    """Positions count all items in the order they were added, including deleted ones until `compacted` drops them."""

    def __init__(self, segments: Sequence[Segment] = (), deleted: np.ndarray | Sequence[int] = ()):
        self.segments = list(segments)
        self.dead = np.zeros(sum(map(len, self.segments)), bool)
        self.dead[np.asarray(deleted, np.int64)] = True

    def __len__(self) -> int:
        """Deleted items are not counted."""
        return len(self.dead) - self.num_dead

    @property
    def num_dead(self) -> int:
        """How many items are deleted."""
        return int(np.count_nonzero(self.dead))

    @cached_property
    def position(self) -> dict[str, int]:
        """Position of every living item by id; made when first needed, because a search does not need it."""
        ids = [id for segment in self.segments for id in segment.ids]
        return {ids[position]: position for position in np.flatnonzero(~self.dead).tolist()}

    def add(self, segment: Segment) -> None:
        """Append items whose ids are new."""
        ids = segment.ids
        if self.segments:
            check_same_shapes(self.segments[0].shapes, segment.shapes)
        self.position.update(zip(ids, range(len(self.dead), len(self.dead) + len(ids)), strict=True))
        self.segments.append(segment)
        self.dead = np.concatenate([self.dead, np.zeros(len(ids), bool)])

    def delete(self, ids: Sequence[str]) -> None:
        """Mark items as deleted. Raises ValueError, and deletes nothing, if one is not there."""
        check_known_ids(ids, self.position)
        self.dead[[self.position.pop(id) for id in ids]] = True

    def locate(self, position: int) -> tuple[Segment, int]:
        """The segment of an item, and its row there."""
        for segment in self.segments:
            if position < len(segment):
                return segment, position
            position -= len(segment)
        raise IndexError(position)

    def item(self, position: int) -> Item:
        """The item at a position."""
        segment, row = self.locate(position)
        return segment.item(row)

    def find(self, ids: Iterable[str], thumbnails: bool) -> dict[str, Item]:
        """The items with those of the ids that are there, by id, with or without their thumbnails."""
        positions = np.sort([self.position[id] for id in ids if id in self.position]).astype(np.int64)
        found, first = {}, 0
        for segment in self.segments:
            here = positions[(positions >= first) & (positions < first + len(segment))]
            found |= {item.id: item for item in segment.items(here - first, thumbnails)}
            first += len(segment)
        return found

    def vectors(self, positions: np.ndarray) -> Tensor:
        """Vectors float32 [n, D] at these positions, int64 [n]."""
        found, first = None, 0
        for segment in self.segments:
            here = torch.from_numpy((positions >= first) & (positions < first + len(segment)))
            rows = torch.from_numpy(positions)[here] - first
            if found is None:
                found = torch.empty(len(positions), segment.vectors.shape[1])
            found[here] = segment.vectors[rows].float()
            first += len(segment)
        return found

    def blocks(self, num_queries: int, device: torch.device, start: int = 0) -> Iterator[Block]:
        """All vectors from the position `start`, in blocks that bound the memory of a search."""
        first = 0
        for segment in self.segments:
            vectors = segment.vectors_on(device)
            size = max(1, BLOCK_BYTES // (4 * max(num_queries, vectors.shape[1])))
            for row in range(max(0, start - first), len(segment), size):
                block = vectors[row : row + size]
                dead = self.dead[first + row : first + row + len(block)]
                yield Block(first + row, block, torch.from_numpy(dead).to(device) if dead.any() else None)
            first += len(segment)

    def selection(self, segments: Sequence[Segment] | None = None, compact: bool = False) -> Selection:
        """The rows of these segments (default: all); with `compact`, without the deleted ones."""
        chosen, rows, first = [], [], 0
        for segment in self.segments:
            dead = torch.from_numpy(self.dead[first : first + len(segment)])
            if segments is None or segment in segments:
                chosen.append(segment)
                rows.append((~dead).nonzero()[:, 0] if compact else torch.arange(len(segment)))
            first += len(segment)
        return Selection(chosen, rows)

    def compacted(self) -> "Gallery":
        """The living items in one segment, in memory."""
        return Gallery([self.selection(compact=True).segment()]) if len(self) else Gallery()

    def join_unsaved(self) -> None:
        """Merge the segments in memory into one: items may come a few at a time."""
        unsaved = [segment for segment in self.segments if segment.files is None]
        if len(unsaved) > 1:  # they are the last ones
            self.segments = [s for s in self.segments if s.files is not None] + [self.selection(unsaved).segment()]
