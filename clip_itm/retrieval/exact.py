"""Exact search in blocks, with scores that depend only on the two vectors.

A float32 matrix product rounds the same dot product differently in blocks of another shape: duplicates in two blocks
would not tie, and a query alone would score differently than in a batch. So the product only finds the candidates,
including all those that rounding could have kept out of the first k, and their scores are summed again in float64 and
rounded to float32.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from clip_itm.precision import exact_float32

BLOCK_BYTES = 64 * 2**20  # of float32 scores, and of a block's vectors in float32
QUERIES_AT_ONCE = 4096  # more would make blocks of vectors too narrow for a fast product
WIDENED_BYTES = 4 * 2**20  # of float16 vectors in float32
FEW_QUERIES = 64  # up to here a CPU is faster, up to 2.5 times, with the larger matrix on the left
UNIT_ROUNDOFF = 2.0**-24  # of float32


class Block(NamedTuple):
    """Neighbours in a gallery: `vectors` [b, D] of any floating type, for the positions from `start`.

    `dead` bool [b] marks deleted items; None: there are none.
    """

    start: int
    vectors: Tensor
    dead: Tensor | None


class Best(NamedTuple):
    """The best items of some queries, flat [M]: sorted by query, then best first, then by position."""

    query: np.ndarray
    position: np.ndarray
    score: np.ndarray

    def split(self, num_queries: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Positions and scores of each query."""
        cuts = np.searchsorted(self.query, np.arange(1, num_queries))
        return list(zip(np.split(self.position, cuts), np.split(self.score, cuts), strict=True))[:num_queries]


NOTHING = Best(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))


def search_blocks(queries: Tensor, blocks: Iterable[Block], top_k: int, largest_norm: float) -> Best:
    """The best `top_k` for each query [Q, D] in all blocks, whose vectors have norms of at most `largest_norm`."""
    best = NOTHING
    margin = rounding_margin(queries, largest_norm)
    with torch.inference_mode(), exact_float32(queries.device):
        for block in blocks:
            vectors = block.vectors
            scores = products(queries, vectors)
            if block.dead is not None:
                scores.masked_fill_(block.dead, -torch.inf)
            floor = last_scores(best, top_k, queries)
            if top_k < len(vectors):
                floor = torch.maximum(floor, scores.topk(top_k, sorted=False).values.amin(1))
            # With fewer than top_k found, floor is -inf; clamped, it admits every finite score, but not the dead.
            candidates = scores >= (floor - margin).clamp(min=torch.finfo(torch.float32).min)[:, None]
            query, row = candidates.nonzero(as_tuple=True)
            found = Best(
                query.cpu().numpy(), row.cpu().numpy() + block.start, score_pairs(queries, vectors, query, row)
            )
            best = merge(best, found, top_k)
    return best


def products(queries: Tensor, vectors: Tensor) -> Tensor:
    """Float32 dot products [Q, b] of queries [Q, D] and vectors [b, D] of any floating type."""
    if vectors.dtype == queries.dtype:
        return (vectors @ queries.T).T.contiguous() if len(queries) <= FEW_QUERIES else queries @ vectors.T
    if vectors.device.type != "cpu":
        return products(queries, vectors.float())
    # reuse memory that stays in the cache: fresh pages cost more than the products
    at_once = max(1, WIDENED_BYTES // (4 * vectors.shape[1]))
    wide = queries.new_empty(min(at_once, len(vectors)), vectors.shape[1])
    scores = queries.new_empty(len(queries), len(vectors))
    for start in range(0, len(vectors), at_once):
        part = vectors[start : start + at_once]
        scores[:, start : start + len(part)] = products(queries, wide[: len(part)].copy_(part))
    return scores


def rounding_margin(queries: Tensor, largest_norm: float) -> Tensor:
    """How much two float32 scores of a query may be off together, in any order of summation: [Q].

    D roundings each, at most of the product of both norms (Cauchy and Schwarz); 8 for the norms and the final score.
    """
    return 2 * (queries.shape[1] + 8) * UNIT_ROUNDOFF * largest_norm * queries.norm(dim=1)


def last_scores(best: Best, top_k: int, queries: Tensor) -> Tensor:
    """The score [Q] of each query's `top_k`-th item, -inf if there are fewer."""
    scores = np.full(len(queries), -np.inf, np.float32)
    last = positions(best.query) == top_k - 1
    scores[best.query[last]] = best.score[last]
    return torch.from_numpy(scores).to(queries.device)


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
    order = order[positions(query[order]) < top_k]
    return Best(query[order], position[order], score[order])


def positions(query: np.ndarray) -> np.ndarray:
    """0, 1, ... within each run of equal values of the ascending `query` [M]."""
    return np.arange(len(query)) - np.searchsorted(query, query)
