"""Similarities of two sets of unit vectors (DivE, Kim et al., CVPR 2023; docs/papers/dive.md 5).

    c_kl = <s_k, t_l>                        s_1 .. s_K elements of an image, t_1 .. t_L of a caption

    smooth-Chamfer     1/2 [ mean_k log sum_l exp(alpha c_kl) + mean_l log sum_k exp(alpha c_kl) ] / alpha
    Chamfer            1/2 [ mean_k max_l c_kl + mean_l max_k c_kl ]
    max                max_kl c_kl
    match probability  mean_kl sigmoid(a c_kl + b)

The smooth-Chamfer similarity of collapsed sets is their cosine + (ln K + ln L) / (2 alpha): it may exceed 1.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clip_itm.backbones.features import Features
from clip_itm.methods.dive.configuration import SetSimilaritySection, SmoothChamferSection
from clip_itm.similarity.base import Similarity

BLOCK_BYTES = 16 * 2**20  # of float32 cosines; a reduction needs about as much again
LARGEST_SHARED_ALPHA = 40  # exp(-2 alpha), the smallest value of the shared exponential, is a normal float32 up to here


def element_cosines(images: Tensor, texts: Tensor) -> Tensor:
    """Sets [b, K, D] and [n, L, D] to cosines [K, b, L, n], in float32 or more.

    Items are innermost, so that a sum over the few elements of a set runs over whole vectors of items.
    """
    images, texts = (sets.to(torch.promote_types(sets.dtype, torch.float32)) for sets in (images, texts))
    cosines = images.transpose(0, 1).flatten(0, 1) @ texts.transpose(0, 1).flatten(0, 1).T
    return cosines.view(images.shape[1], len(images), texts.shape[1], len(texts))


def smooth_chamfer(cosines: Tensor, alpha: float) -> Tensor:
    """Cosines [K, b, L, n] to similarities [b, n] (docs/papers/dive.md 5.1); one exponential for both directions (5.7).

    Example:
        >>> one_element_each = torch.tensor([0.5]).view(1, 1, 1, 1)
        >>> smooth_chamfer(one_element_each, alpha=16.0)
        tensor([[0.5000]])
    """
    if alpha > LARGEST_SHARED_ALPHA:
        scaled = alpha * cosines
        return (scaled.logsumexp(2).mean(0) + scaled.logsumexp(0).mean(1)) / (2 * alpha)
    shared = (cosines - 1).mul_(alpha).exp_()
    return 1 + (shared.sum(2).log_().mean(0) + shared.sum(0).log_().mean(1)) / (2 * alpha)


def chamfer(cosines: Tensor) -> Tensor:
    """Cosines [K, b, L, n] to Chamfer similarities [b, n] (5.2)."""
    return (cosines.amax(2).mean(0) + cosines.amax(0).mean(1)) / 2


def largest(cosines: Tensor) -> Tensor:
    """Cosines [K, b, L, n] to the largest of each pair of sets, [b, n] (5.3)."""
    return cosines.amax((0, 2))


def match_probability(cosines: Tensor, slope: Tensor | float, shift: Tensor | float) -> Tensor:
    """Cosines [K, b, L, n] to matching probabilities [b, n] (5.4)."""
    return (slope * cosines + shift).sigmoid().mean((0, 2))


def set_scores(images: Tensor, texts: Tensor, reduction: Callable[[Tensor], Tensor]) -> Tensor:
    """Sets [Ni, K, D] and [Nt, L, D] to scores [Ni, Nt]: `reduction` of their cosines.

    Above `BLOCK_BYTES` of cosines it works in blocks, which the backward pass computes again.
    """
    pairs_at_once = max(1, BLOCK_BYTES // (4 * images.shape[1] * texts.shape[1]))
    if len(images) * len(texts) <= pairs_at_once:
        return reduction(element_cosines(images, texts))
    texts_at_once = min(len(texts), math.isqrt(pairs_at_once))
    images_at_once = pairs_at_once // texts_at_once

    def block(images: Tensor, texts: Tensor) -> Tensor:
        return reduction(element_cosines(images, texts))

    if torch.is_grad_enabled():
        rows = [
            torch.cat(
                [
                    checkpoint(block, some_images, some_texts, use_reentrant=False, preserve_rng_state=False)
                    for some_texts in texts.split(texts_at_once)
                ],
                dim=1,
            )
            for some_images in images.split(images_at_once)
        ]
        return torch.cat(rows)
    dtype = torch.promote_types(torch.promote_types(images.dtype, texts.dtype), torch.float32)
    scores = torch.empty(len(images), len(texts), dtype=dtype, device=images.device)
    for rows, some_images in zip(scores.split(images_at_once), images.split(images_at_once), strict=True):
        for cells, some_texts in zip(rows.split(texts_at_once, 1), texts.split(texts_at_once), strict=True):
            cells.copy_(block(some_images, some_texts))
    return scores


class SetSimilarity(Similarity):
    """Sets of unit vectors [B, K, D], made by `image_sets` and `text_sets` and compared as the section says.

    A shortlist compares the means of sets: their dot products are just below smooth-Chamfer, up to a constant
    (docs/papers/dive.md 12).
    """

    needs_tokens = True

    def __init__(
        self, section: SmoothChamferSection | SetSimilaritySection, image_sets: nn.Module, text_sets: nn.Module
    ):
        super().__init__()
        self.section, self.image_sets, self.text_sets = section, image_sets, text_sets
        if section.kind == "match_probability":
            self.slope = nn.Parameter(torch.tensor(1.0))
            self.shift = nn.Parameter(torch.tensor(0.0))

    def embed_images(self, features: Features) -> Tensor:
        return self.image_sets(features).sets

    def embed_texts(self, features: Features) -> Tensor:
        return self.text_sets(features).sets

    def reduction(self) -> Callable[[Tensor], Tensor]:
        """The function from cosines [K, b, L, n] to similarities [b, n] that the section names."""
        match self.section.kind:
            case "smooth_chamfer":
                return partial(smooth_chamfer, alpha=self.section.alpha)
            case "chamfer":
                return chamfer
            case "max":
                return largest
            case "match_probability":
                return partial(match_probability, slope=self.slope, shift=self.shift)

    def forward(self, images: Tensor, texts: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            return set_scores(images, texts, self.reduction())

    def vectors(self, embeddings: Tensor) -> Tensor:
        return embeddings.mean(dim=1)
