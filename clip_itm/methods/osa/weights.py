"""Weights of OSA, from cosines under the estimator (Li et al., arXiv 2410.01944).

x = max(0, s - beta)
intended   w = x^2 (1 - x)                                 eq. 5, one constant per pair
released   w = x^2 (1 - x) (1 + x), x divided by the largest x of the batch: the surest pair of each batch gets 0
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Boundary(NamedTuple):
    """beta, the mean cosine of unrelated pairs, and its standard error."""

    beta: float
    error: float


def mismatch_boundary(images: Tensor, texts: Tensor, image_ids: Tensor, caption_ids: Tensor | None = None) -> Boundary:
    """Over all images i and captions j of a sample of pairs, except those of one image or of equal `caption_ids` [M].

    `images`, `texts` [M, D] unit vectors, row k is pair k; `image_ids` int64 [M]. Every image and every caption takes
    part in many mismatches, so the error is that of a mean over both (a U-statistic of two samples; Hoeffding 1948),
    a little too large for few pairs. Raises ValueError if all pairs are of one image.

    Example:
        >>> images, texts = torch.eye(3), torch.tensor([[0.0, 0.6, 0.8], [0.6, 0.0, 0.8], [0.6, 0.8, 0.0]])
        >>> round(mismatch_boundary(images, texts, torch.arange(3)).beta, 3)
        0.7
    """
    sums, counts = torch.zeros(2, 2, len(images), dtype=torch.float64)  # of rows, of columns
    for start in range(0, len(images), 1024):
        block = slice(start, start + 1024)
        is_mismatch = (image_ids[block, None] != image_ids[None, :]).double()
        if caption_ids is not None:
            is_mismatch *= caption_ids[block, None] != caption_ids[None, :]
        cosines = (images[block] @ texts.T).double() * is_mismatch
        for axis, own in ((0, block), (1, slice(None))):
            sums[axis, own] += cosines.sum(dim=1 - axis)
            counts[axis, own] += is_mismatch.sum(dim=1 - axis)
    if not counts.any():
        raise ValueError("all pairs are of one image: there are no unrelated ones to compare them with")
    beta = float(sums[0].sum() / counts[0].sum())
    means = sums / counts.clamp(min=1)
    variance = (means - beta).square().mean(dim=1) / (len(images) - 1)
    return Boundary(beta, math.sqrt(float(variance.sum())))


def excess(cosines: Tensor, beta: float) -> Tensor:
    """x [N]: by how much cosines [N] exceed beta, clamped to [0, 1]."""
    return (cosines - beta).clamp(0, 1)


def intended_weights(x: Tensor) -> Tensor:
    """w [b] in [0, 4 / 27] from x [b].

    Example:
        >>> intended_weights(torch.tensor([0.0, 0.1, 0.2]))
        tensor([0.0000, 0.0090, 0.0320])
    """
    return x.square() * (1 - x)


def released_weights(x: Tensor, largest: Tensor) -> Tensor:
    """w [b] in [0, 1 / 4] from x [b] and the `largest` x of the global batch; all 0 if that is 0.

    Example:
        >>> released_weights(torch.tensor([0.0, 0.1, 0.2]), torch.tensor(0.2))
        tensor([0.0000, 0.1875, 0.0000])
    """
    x = x / largest.clamp(min=torch.finfo(x.dtype).tiny)
    return x.square() * (1 - x) * (1 + x)
