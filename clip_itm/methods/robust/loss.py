"""Bounded contrastive losses, one direction each, and all of them by name.

    p = softmax(s)_k                                     s: a row of scores over the temperature, k its own column
    infonce   -log p                                     Radford et al. 2021
    gce       (1 - p^q) / q                              Zhang and Sabuncu, NeurIPS 2018, eq. 6
    rince     -e^(q s_k) / q + (lambda sum_j e^(s_j))^q / q        Chuang et al., CVPR 2022, eq. 5
    sce       -a log p + 4 b (1 - p)                     Wang et al., ICCV 2019, eq. 5 and 7; log 0 counts as -4
    tal       [m - tau s_k + tau log sum_{j != k} e^(s_j)]_+       Qin et al., CVPR 2024, eq. 6

As q goes to 0, gce becomes infonce, and so does rince with lambda = 1. With b = 0, sce is infonce times a. As tau goes
to 0, tal becomes the hinge with the hardest negative, which it bounds from above.

`logits` [b, B] are similarities over the temperature, `targets` int64 [b] the row's own column, `siblings` bool [b, B]
columns that are not candidates of the row (never its own). All return [b].
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from clip_itm.methods.clip.head import contrastive_cross_entropy
from clip_itm.methods.scores import merged, without_equal_captions

LOG_ZERO = -4.0  # what the reverse cross-entropy of sce takes for log 0


class LossOptions(NamedTuple):
    """The parameters of the losses; each loss reads its own."""

    q: float
    rince_lambda: float
    sce_cross_entropy: float
    sce_reverse: float
    tal_margin: float


def log_probability(logits: Tensor, targets: Tensor, siblings: Tensor) -> Tensor:
    """log p of the own column, without the rounding of a logarithm of p."""
    return logits.masked_fill(siblings, -torch.inf).log_softmax(dim=1).gather(1, targets[:, None])[:, 0]


def gce(logits: Tensor, targets: Tensor, siblings: Tensor, q: float) -> Tensor:
    """Generalised cross-entropy: the gradient of -log p times p^q.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, -9.0]])
        >>> gce(logits, torch.arange(2), torch.zeros(2, 2, dtype=torch.bool), q=0.5)
        tensor([0.1230, 1.9778])
    """
    return -torch.expm1(q * log_probability(logits, targets, siblings)) / q


def rince(logits: Tensor, targets: Tensor, siblings: Tensor, q: float, rince_lambda: float) -> Tensor:
    """Robust InfoNCE; the pair's own column is among the candidates. Not bounded below: keep the temperature fixed.

    As a difference of `expm1`, which is exact where q is small. Finite while q * logits stay below 88 (float32).

    Example:
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
        >>> rince(logits, torch.arange(2), torch.zeros(2, 2, dtype=torch.bool), q=1.0, rince_lambda=0.5)
        tensor([-3.1945, -3.1945])
    """
    own = logits.gather(1, targets[:, None])[:, 0]
    candidates = logits.masked_fill(siblings, -torch.inf).logsumexp(dim=1)
    return (torch.expm1(q * (candidates + math.log(rince_lambda))) - torch.expm1(q * own)) / q


def sce(logits: Tensor, targets: Tensor, siblings: Tensor, cross_entropy: float, reverse: float) -> Tensor:
    """Symmetric cross-entropy: the plain loss times `cross_entropy`, and the reverse one, which is bounded by 4.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0], [2.0, 0.0]])
        >>> sce(logits, torch.arange(2), torch.zeros(2, 2, dtype=torch.bool), cross_entropy=0.1, reverse=1.0)
        tensor([0.4895, 3.7359])
    """
    log_p = log_probability(logits, targets, siblings)
    return reverse * LOG_ZERO * torch.expm1(log_p) - cross_entropy * log_p


def tal(logits: Tensor, targets: Tensor, siblings: Tensor, margin: float, scale: Tensor | float) -> Tensor:
    """Triplet alignment loss: a hinge on the soft maximum over all negatives; `logits` are similarities times `scale`.

    A row without a negative costs nothing.

    Example:
        >>> similarities = torch.tensor([[0.5, 0.4], [0.1, 0.9]])
        >>> tal(100 * similarities, torch.arange(2), torch.zeros(2, 2, dtype=torch.bool), margin=0.2, scale=100.0)
        tensor([0.1000, 0.0000])
    """
    own = logits.gather(1, targets[:, None])[:, 0]
    excluded = siblings.scatter(1, targets[:, None], True)
    alone = excluded.all(dim=1)
    # a row without negatives keeps finite values: the log of an empty sum has no finite gradient
    negatives = logits.masked_fill(excluded & ~alone[:, None], -torch.inf).logsumexp(dim=1)
    return (margin + (negatives - own) / scale).relu().masked_fill(alone, 0)


def bounded_losses(
    loss: str,
    rows: Tensor,
    columns: Tensor,
    targets: Tensor,
    same_image: Tensor,
    mode: str,
    scale: Tensor | float,
    options: LossOptions,
    equal: Tensor | None = None,
    caption_mode: str = "negative",
) -> Tensor:
    """[b], the loss called `loss` of every local pair: the mean of both directions.

    `rows`, `columns` [b, B] similarities of local images with all captions, and of local captions with all images;
    `same_image` bool [b, B] marks the columns of the row's image, its own included, and `mode` says whether they are
    "negative", left out ("mask") or right together ("positive"), as in `contrastive_cross_entropy`; `scale`: 1 / tau;
    `caption_mode` does the same for the columns `equal` bool [b, B] (see `same_caption`).
    """
    siblings = torch.zeros_like(same_image) if mode == "negative" else same_image.scatter(1, targets[:, None], False)
    if equal is not None:
        siblings = siblings | equal

    def direction(logits: Tensor) -> Tensor:
        logits = without_equal_captions(logits, targets, equal, caption_mode)
        if loss == "infonce":
            return contrastive_cross_entropy(logits, targets, same_image, mode)
        if mode == "positive":
            logits = merged(logits, targets, same_image)
        match loss:
            case "gce":
                return gce(logits, targets, siblings, options.q)
            case "rince":
                return rince(logits, targets, siblings, options.q, options.rince_lambda)
            case "sce":
                return sce(logits, targets, siblings, options.sce_cross_entropy, options.sce_reverse)
            case "tal":
                return tal(logits, targets, siblings, options.tal_margin, scale)
            case other:
                raise ValueError(f"no loss is called {other!r}; there are infonce, gce, rince, sce and tal")

    return (direction(scale * rows) + direction(scale * columns)) / 2
