"""An exact search of vectors in memory, with the scores and ties of `LocalIndex` but nothing else of it."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from clip_itm.retrieval.base import check_embeddings, check_known_ids, check_new_ids, check_queries, check_search
from clip_itm.retrieval.exact import BLOCK_BYTES, QUERIES_AT_ONCE, Block, search_blocks
from clip_itm.retrieval.items import Hit, Item, make_hits


class MemoryIndex:
    """Items of one modality with embeddings [N, D], or [N, ...] with vectors [N, D], which a search then compares.

    Raises ValueError for ids that are given twice, and values that are not finite.
    """

    def __init__(self, modality: str, items: Sequence[Item], embeddings: Tensor, vectors: Tensor | None = None):
        check_new_ids([item.id for item in items], ())
        self.modality = modality
        self._items = list(items)
        self._row = {item.id: row for row, item in enumerate(items)}
        self._vectors, own = check_embeddings(items, embeddings, vectors, torch.float32)
        self._embeddings = self._vectors if own is None else own
        self._largest_norm = float(self._vectors.norm(dim=1).max())

    def search(self, vectors: Tensor, top_k: int) -> list[list[Hit]]:
        """The `top_k` best items of each query [Q, D] (or all there are), best first, ties in gallery order."""
        check_search(len(self), top_k)
        found = []
        for queries in check_queries(vectors, self._vectors.shape[1]).split(QUERIES_AT_ONCE):
            best = search_blocks(queries, self._blocks(len(queries)), top_k, self._largest_norm)
            for rows, scores in best.split(len(queries)):
                found.append(make_hits([self._items[row] for row in rows.tolist()], scores))
        return found

    def embeddings_of(self, ids: Sequence[str]) -> Tensor:
        """Float32 [n, ...] on the CPU."""
        check_known_ids(ids, self._row)
        return self._embeddings[[self._row[id] for id in ids]]

    def __len__(self) -> int:
        return len(self._items)

    def _blocks(self, num_queries: int) -> Iterator[Block]:
        """The vectors in blocks that bound the memory of a search."""
        size = max(1, BLOCK_BYTES // (4 * max(num_queries, self._vectors.shape[1])))
        for start in range(0, len(self), size):
            yield Block(start, self._vectors[start : start + size], None)
