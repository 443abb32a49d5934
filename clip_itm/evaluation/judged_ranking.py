"""Ranks of queries with right answers beyond the captions (or the image) they came with."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from clip_itm.evaluation.judgements import JudgedSplit, Positives
from clip_itm.evaluation.ranking import BLOCK_BYTES, Ranks, Scorer, prepare_scores, rank_best, score
from clip_itm.precision import exact_float32


@dataclass(frozen=True, eq=False)
class PositiveRanks:
    """1-based ranks of all right answers of Q queries of one direction.

    `ranks` int64 [Q, R], ascending: the ranks of the right answers in the gallery, padded with the largest int64. They
    are exact up to `total` [Q], the number of right answers of the query; a worse rank is some number above it.
    `pessimistic` [Q, R]: the same with every tied wrong answer counted as ahead instead of behind.
    `image` [Q]: the image of each query (itself, or that of the caption), from which the bootstrap draws.
    """

    ranks: np.ndarray
    pessimistic: np.ndarray
    total: np.ndarray
    image: np.ndarray


ABSENT = torch.iinfo(torch.int64).max


class Direction(NamedTuple):
    """Queries with their right answers, and `score_queries(query [b]) -> [b, C]` against all candidates."""

    positives: Positives
    score_queries: Callable[[Tensor], Tensor]
    num_candidates: int
    queries_at_once: int

    def blocks(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Blocks of scores [b, C], each with the (row, column) of the right answers in it."""
        query, row, column, _ = self.positives
        for start in range(0, len(query), self.queries_at_once):
            block = query[start : start + self.queries_at_once]
            ends = torch.tensor([start, start + len(block)], device=row.device)
            first, last = torch.searchsorted(row, ends).tolist()
            yield self.score_queries(block), row[first:last] - start, column[first:last]


def directions(
    split: JudgedSplit,
    similarity: Scorer | None,
    block_size: int | None,
    device: str | torch.device | None,
) -> tuple[Direction, Direction]:
    """Image to text and text to image; for the arguments see `compute_ranks`."""
    images, texts, similarity = prepare_scores(split.images, split.texts, similarity, block_size, device)

    def direction(positives: Positives, score_queries: Callable[[Tensor], Tensor], candidates: Tensor) -> Direction:
        on_device = Positives(*(x.to(images.device) for x in positives))
        at_once = block_size or max(1, BLOCK_BYTES // (4 * len(candidates)))
        return Direction(on_device, score_queries, len(candidates), min(at_once, len(positives.query)))

    return (
        direction(split.image_to_text, lambda query: score(similarity, images[query], texts), texts),
        direction(split.text_to_image, lambda query: score(similarity, images, texts[query]).T, images),
    )


def compute_best_ranks(
    split: JudgedSplit,
    similarity: Scorer | None = None,
    block_size: int | None = None,
    device: str | torch.device | None = None,
) -> Ranks:
    """The rank of the best right answer to every query; for arguments and memory see `compute_ranks`."""
    both = directions(split, similarity, block_size, device)
    place = both[0].positives.query.device
    scratch = torch.empty(max(each.queries_at_once * each.num_candidates for each in both), device=place)
    with torch.inference_mode(), exact_float32(place):
        (image_best, image_worst), (text_best, text_worst) = (
            torch.cat([rank_best(*block, scratch) for block in each.blocks()], dim=1).cpu().numpy() for each in both
        )
    owner = split.caption_image[split.text_to_image.query]
    query = split.image_to_text.query.numpy()
    return Ranks(image_best, image_worst, text_best, text_worst, query, owner.numpy())


def compute_positive_ranks(
    split: JudgedSplit,
    similarity: Scorer | None = None,
    block_size: int | None = None,
    device: str | torch.device | None = None,
) -> tuple[PositiveRanks, PositiveRanks]:
    """The ranks of all right answers, image to text and text to image; for arguments and memory see `compute_ranks`."""
    both = directions(split, similarity, block_size, device)
    with torch.inference_mode(), exact_float32(both[0].positives.query.device):
        (image_best, image_worst), (text_best, text_worst) = (
            torch.cat([rank_all(*block, int(each.positives.total.max())) for block in each.blocks()], dim=1)
            .cpu()
            .numpy()
            for each in both
        )
    images, texts = split.image_to_text, split.text_to_image
    return (
        PositiveRanks(image_best, image_worst, images.total.numpy(), images.query.numpy()),
        PositiveRanks(text_best, text_worst, texts.total.numpy(), split.caption_image[texts.query].numpy()),
    )


def rank_all(scores: Tensor, row: Tensor, column: Tensor, most: int) -> Tensor:
    """Ranks [2, b, most] (optimistic, pessimistic) of each query's right answers; scores [b, C] against all candidates.

    `column[n]` is a right answer of the query in row `row[n]`, ascending; no query has more than `most`. Ranks are
    ascending; those up to `most` are exact, and worse ones are some number above it.
    """
    place = torch.arange(len(row), device=row.device) - torch.searchsorted(row, row)
    own = scores.new_full((len(scores), most), -torch.inf)
    own[row, place] = scores[row, column]
    own = own.sort(dim=1).values  # ascending: the best right answer is last
    count = torch.bincount(row, minlength=len(scores))[:, None]
    # Either all greater values are among the best 2 * most, or more than `most` of these are wrong answers.
    best = scores.topk(min(2 * most, scores.shape[1]), dim=1).values.flip(1).contiguous()
    ahead = [
        (best.shape[1] - torch.searchsorted(best, own, right=right))
        - (most - torch.searchsorted(own, own, right=right))
        for right in (True, False)
    ]
    nth = torch.arange(most, 0, -1, device=row.device)
    ranks = [(nth + wrong).where(nth <= count, ABSENT).flip(1) for wrong in ahead]
    return torch.stack(ranks)
