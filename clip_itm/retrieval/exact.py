"""Exact search in blocks, with scores that depend on nothing but the two vectors.

A float32 matrix product rounds the same dot product differently in blocks of another shape: duplicates in two blocks
would not tie, and a query alone would score otherwise than in a batch. So the product only finds the candidates, all
those that rounding could have kept out of the first k included, and their scores are summed once more in float64 and
rounded to float32.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from clip_itm.precision import exact_float32

BLOCK_BYTES = 64 * 2**20  # of float32 scores, and of a block's vectors
QUERIES_AT_ONCE = 4096  # more would make blocks of vectors too narrow for a fast product
HALF_ULP = 2.0**-24


class Best(NamedTuple):
    """The best items so far of Q queries: flat arrays [M], sorted by query, then best first, then by position."""

    query: np.ndarray
    position: np.ndarray
    score: np.ndarray

    def of_each(self, num_queries: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Positions and scores of each query."""
        cuts = np.searchsorted(self.query, np.arange(1, num_queries))
        return list(zip(np.split(self.position, cuts), np.split(self.score, cuts), strict=True))


NOTHING = Best(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))


class Block(NamedTuple):
    """Neighbours in the gallery: `vectors` [b, D] of any floating type, items `start`, `start` + 1, ...

    `dead` bool [b] marks deleted items.
    """

    start: int
    vectors: Tensor
    dead: Tensor


def search_blocks(queries: Tensor, blocks: Iterable[Block], top_k: int, largest_norm: float) -> Best:
    """The first `top_k` of each query [Q, D] among all blocks; `largest_norm` bounds the norms of their vectors."""
    best = NOTHING
    margin = rounding_margin(queries, largest_norm)
    with torch.inference_mode(), exact_float32(queries.device):
        for block in blocks:
            vectors = block.vectors.float()
            scores = (queries @ vectors.T).masked_fill_(block.dead, -torch.inf)
            if top_k < len(vectors):
                floor = torch.maximum(scores.topk(top_k).values[:, -1], worst_of_best(best, top_k, queries)) - margin
            else:
                floor = worst_of_best(best, top_k, queries) - margin
            query, row = ((scores >= floor[:, None]) & ~block.dead).nonzero(as_tuple=True)
            score = score_pairs(queries, vectors, query, row)
            best = merge(best, Best(query.cpu().numpy(), row.cpu().numpy() + block.start, score), top_k)
    return best


def rounding_margin(queries: Tensor, largest_norm: float) -> Tensor:
    """How far two float32 scores of a query [Q, D] may be swapped by rounding: a bound, whatever the order of sums."""
    return 2 * queries.shape[1] * HALF_ULP * largest_norm * queries.norm(dim=1)


def worst_of_best(best: Best, top_k: int, queries: Tensor) -> Tensor:
    """The score [Q] that an item must reach to be among the first `top_k`, given those found so far."""
    worst = np.full(len(queries), -np.inf, np.float32)
    place = places(best.query)
    last = place == top_k - 1
    worst[best.query[last]] = best.score[last]
    return torch.from_numpy(worst).to(queries.device)


def score_pairs(queries: Tensor, vectors: Tensor, query: Tensor, row: Tensor) -> np.ndarray:
    """Dot products [M] of `queries[query]` and `vectors[row]`: float64 sums of exact products, rounded to float32."""
    at_once = max(1, BLOCK_BYTES // (8 * queries.shape[1]))
    parts = [
        (queries[query[start : start + at_once]].double() * vectors[row[start : start + at_once]].double()).sum(1)
        for start in range(0, len(query), at_once)
    ]
    return torch.cat(parts).float().cpu().numpy() if parts else NOTHING.score


def merge(first: Best, second: Best, top_k: int) -> Best:
    """The best `top_k` of each query from both; equal scores in gallery order."""
    query, position, score = (np.concatenate(both) for both in zip(first, second, strict=True))
    order = np.lexsort((position, -score, query))
    order = order[places(query[order]) < top_k]
    return Best(query[order], position[order], score[order])


def places(query: np.ndarray) -> np.ndarray:
    """0, 1, ... within each run of equal numbers in the ascending `query` [M]."""
    return np.arange(len(query)) - np.searchsorted(query, query)
