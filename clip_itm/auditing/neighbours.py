"""The best of many candidates for each query, in blocks; ties in the order of the data."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from clip_itm.evaluation.ranking import BLOCK_BYTES
from clip_itm.precision import exact_float32

ROUNDING = 1e-4  # of two float32 scores, generously: scores this close are compared again in float64

Block = Callable[[Tensor, Tensor], Tensor]
Again = Callable[[Tensor, Tensor, Tensor], Tensor]


def nearest(
    vectors: Tensor, queries: np.ndarray, k: int, group: np.ndarray, candidates: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The `k` nearest of unit `vectors` [M, D] to those of `queries` int64 [S]: rows int64 [S, k] and cosines [S, k].

    Evidence for a suspect: the photos near its photo (with their captions), the captions near its caption. Members of
    the query's own `group` (int64 [M]) are left out: itself, captions of the same photo. candidates: int64 [C],
    ascending, the rows to look at (such as one for each text). -1 and -inf where there are fewer.
    """
    rows = np.arange(len(vectors)) if candidates is None else np.asarray(candidates)
    order = np.argsort(group[rows], kind="stable")
    sorted_groups = group[rows][order]

    def taken(query: int) -> np.ndarray:
        return order[slice(*np.searchsorted(sorted_groups, [group[query], group[query] + 1]))]

    vectors = vectors.float()
    found = top(
        np.asarray(queries),
        rows,
        taken,
        k,
        lambda some, others: vectors[some] @ vectors[others].T,
        lambda some, others, _: dot(vectors[some], vectors[others]),
    )
    columns, cosines = found
    return np.where(columns >= 0, rows[columns] if len(rows) else -1, -1), cosines


def top(
    queries: np.ndarray, others: np.ndarray, taken: Callable[[int], np.ndarray], size: int, block: Block, again: Again
) -> tuple[np.ndarray, np.ndarray]:
    """Columns int64 [Q, size] of the best `others` [C] for each query, and their scores: -1 and -inf if fewer.

    `taken(query)` gives the columns that are no answer; -1 among them is ignored. Ties are in the order of `others`.
    """
    columns = np.full((len(queries), size), -1, dtype=np.int64)
    best = np.full((len(queries), size), -np.inf, dtype=np.float32)
    if not len(others):
        return columns, best
    every = torch.from_numpy(others)
    for part in slices(len(queries), max(1, BLOCK_BYTES // (4 * len(others)))):
        some = torch.from_numpy(queries[part])
        with torch.inference_mode(), exact_float32(some.device):
            scores = block(some, every).contiguous()
            for place, query in enumerate(queries[part].tolist()):
                gone = taken(query)
                scores[place, torch.from_numpy(gone[gone >= 0])] = -torch.inf
            last = scores.topk(min(size, len(others))).values[:, -1:]
            # never -inf: taken columns are no answer even if too few are left
            row, column = (scores >= (last - ROUNDING).clamp(min=torch.finfo(scores.dtype).min)).nonzero(as_tuple=True)
            value = again(some[row], every[column], scores[row, column]).float().numpy()
        row, column = row.numpy(), column.numpy()
        order = np.lexsort((column, -value, row))
        row, column, value = row[order], column[order], value[order]
        place = np.arange(len(row)) - np.searchsorted(row, row)
        kept = place < size
        columns[part.start + row[kept], place[kept]] = column[kept]
        best[part.start + row[kept], place[kept]] = value[kept]
    return columns, best


def slices(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def dot(first: Tensor, second: Tensor) -> Tensor:
    return (first.double() * second.double()).sum(1)
