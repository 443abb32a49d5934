"""The sampled triplet loss of AAHR: negatives drawn by distance (Wu et al., ICCV 2017; docs/papers/aahr.md 5).

    d = max(sqrt(2 - 2 S), 0.5)                                      S [b, B], rows are anchors
    log w = (2 - n) log d - (n - 3) / 2 log(1 - d^2 / 4)             n = 512; 0 beyond the cutoff and at positives
    l_a = sum over positives p of max(0, margin + S_aj - S_ap)       one j for each p, drawn by w_a

w is one over the density of distances between random points of a sphere: near and far negatives are equally likely.
"""

from typing import NamedTuple

import torch
from torch import Tensor

DIMENSION = 512  # n of the published program, whatever the width of the embedding
SMALLEST_DISTANCE = 0.5


class Triplets(NamedTuple):
    """Rows and columns of n triplets in a matrix of scores; int64 [n] each."""

    anchors: Tensor
    positives: Tensor
    negatives: Tensor


def negative_weights(scores: Tensor, positive: Tensor, cutoff: float, clamp: bool = True) -> Tensor:
    """Probabilities [b, B] of the negatives of each row of `scores` [b, B], without gradient (docs/papers/aahr.md 5).

    A row is zero if no negative can be drawn. `positive` bool [b, B]: columns that match the row. Without `clamp` a
    negative whose score is above 1 is never drawn.
    """
    squared = 2 - 2 * scores.detach()
    if clamp:
        squared = squared.clamp(min=0)
    distance = squared.sqrt().clamp(min=SMALLEST_DISTANCE)
    log_weight = (2 - DIMENSION) * distance.log() - (DIMENSION - 3) / 2 * (1 - distance.square() / 4).log()
    log_weight = log_weight.masked_fill(positive | ~log_weight.isfinite(), 0)
    weight = (log_weight - log_weight.amax(dim=1, keepdim=True)).exp()
    weight = weight.masked_fill(positive | ~(distance < cutoff), 0)
    return weight / (weight.sum(dim=1, keepdim=True) + 1e-20)


def draw_triplets(weights: Tensor, positive: Tensor) -> Triplets:
    """A negative for every (anchor, positive), row by row; none for anchors without weights."""
    anchors, positives = (positive & (weights > 0).any(dim=1, keepdim=True)).nonzero(as_tuple=True)
    return Triplets(anchors, positives, draw_negatives(weights[anchors]))


def draw_negatives(weights: Tensor) -> Tensor:
    """A column, drawn by its weight, for every row of `weights` [n, B]: int64 [n]."""
    if len(weights) == 0:
        return torch.empty(0, dtype=torch.int64, device=weights.device)
    return torch.multinomial(weights, 1)[:, 0]


def triplet_losses(scores: Tensor, triplets: Triplets, margin: float) -> Tensor:
    """l_a [b] of the rows of `scores` [b, B]: the hinges of each anchor's triplets, added up."""
    anchors, positives, negatives = triplets
    hinges = (margin + scores[anchors, negatives] - scores[anchors, positives]).clamp(min=0)
    return scores.new_zeros(len(scores)).index_add(0, anchors, hinges)


def sampled_triplet_losses(
    rows: Tensor,
    columns: Tensor,
    positive: Tensor,
    margin: float,
    cutoff: float,
    clamp: bool = True,
    equal: Tensor | None = None,
) -> Tensor:
    """Triplet losses [b] of the local pairs, both directions added (docs/papers/aahr.md 5).

    `rows` [b, B] scores image to captions, `columns` [b, B] caption to images; `positive` bool [b, B]: matches;
    `equal` [b, B]: neither matches nor negatives (see `same_caption`).
    """
    total, taken = 0, positive if equal is None else positive | equal
    for scores in (rows, columns):
        triplets = draw_triplets(negative_weights(scores, taken, cutoff, clamp), positive)
        total = total + triplet_losses(scores, triplets, margin)
    return total
