"""The active complementary loss of CRCL (Qin et al., NeurIPS 2023; docs/papers/crcl.md 3).

    P = softmax(S / tau) of every row, Q = softmax(S^T / tau) of every row       S [B, B], rows are images
    p_i = (P_ii + Q_ii) / 2                                                      moves the label y_i, see labels.py
    A_i = -log P_ii - log Q_ii                                                   active: InfoNCE in both directions
    C_i(P) = sum_{j != i} tan P_ij / (sum_j tan P_ij)^(1 - y_i)                  complementary, one direction
    C_i = C_i(P) + C_i(Q)
    L = mean_i y_i A_i + lambda mean_i C_i

The less a pair is believed (y_i towards 0), the more its loss is C_i alone, which is bounded and whose pull fades as
P_ii goes to 0. No gradient flows through p_i and y_i. -log P_ii comes from the log-softmax: it stays finite where
P_ii underflows.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from clip_itm.methods.scores import local_targets, same_image


class Matching(NamedTuple):
    """The local pairs against their candidates, in one direction."""

    log_probability: Tensor  # [b], of the pair's own column
    probabilities: Tensor  # [b, B], rows add up to 1


def match(logits: Tensor, targets: Tensor, mask: Tensor | None = None) -> Matching:
    """Softmax of every row, in float32 or more.

    `logits` [b, B], similarity over temperature; `targets` int64 [b], column of the row's own pair; `mask` bool [b, B],
    True for columns that are not candidates of the row: their probability is 0 (never the row's own column).
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if mask is not None:
        logits = logits.masked_fill(mask, -torch.inf)
    log_probabilities = logits.log_softmax(dim=1)
    return Matching(log_probabilities.gather(1, targets[:, None])[:, 0], log_probabilities.exp())


def match_both_ways(
    rows: Tensor,
    columns: Tensor,
    temperature: float,
    image_ids: Tensor | None = None,
    softmax_set: int | None = None,
    equal: Tensor | None = None,
) -> tuple[Matching, Matching, Tensor]:
    """The local pairs against the global batch: image to captions, caption to images, and `targets` int64 [b].

    `rows`, `columns` [b, B]: see `global_scores`. With `image_ids` int64 [b], other pairs of the same image are not
    candidates, nor are the columns `equal` bool [b, B] (see `same_caption`). With `softmax_set` = k, the candidates of
    pair g of the global batch are the pairs of its block g // k, so that p means the same in a larger batch
    (docs/papers/crcl.md 9). Raises ValueError if k does not divide B.
    """
    targets = local_targets(rows)
    candidates = torch.arange(rows.shape[1], device=rows.device)
    mask = torch.zeros_like(rows, dtype=torch.bool)
    if image_ids is not None:
        mask |= same_image(rows, image_ids)
    if equal is not None:
        mask |= equal
    if softmax_set is not None:
        if len(candidates) % softmax_set:
            raise ValueError(f"softmax_set {softmax_set} does not divide the global batch of {len(candidates)} pairs")
        mask |= (targets // softmax_set)[:, None] != (candidates // softmax_set)[None, :]
    mask.scatter_(1, targets[:, None], False)
    image_to_text = match(rows / temperature, targets, mask)
    text_to_image = match(columns / temperature, targets, mask)
    return image_to_text, text_to_image, targets


def active_losses(image_to_text: Matching, text_to_image: Matching) -> Tensor:
    """A_i [b]: the directions are added, not averaged (docs/papers/crcl.md 3.2)."""
    return -image_to_text.log_probability - text_to_image.log_probability


def complementary_losses(
    image_to_text: Matching, text_to_image: Matching, exponent: Tensor | float, targets: Tensor
) -> Tensor:
    """C_i [b] with the exponent 1 - y_i of each pair ([b]), or one for all (docs/papers/crcl.md 3.3)."""
    total = 0
    for matching in (image_to_text, text_to_image):
        tangents = matching.probabilities.tan()
        others = tangents.scatter(1, targets[:, None], 0)
        total = total + others.sum(dim=1) / tangents.sum(dim=1) ** exponent
    return total


def matching_probability(image_to_text: Matching, text_to_image: Matching) -> Tensor:
    """p_i [b], without gradient."""
    return (image_to_text.log_probability.exp() + text_to_image.log_probability.exp()).detach() / 2


def crcl_loss(
    image_to_text: Matching, text_to_image: Matching, labels: Tensor, targets: Tensor, complementary_weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    """L, mean y_i A_i and mean C_i over the local pairs, all scalars (docs/papers/crcl.md 3.4).

    `labels` [b] without gradient; `targets` int64 [b]. The mean of L over processes is that of the global batch.

    Example:
        >>> scores = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
        >>> *matched, targets = match_both_ways(scores, scores.T, temperature=0.5)
        >>> loss, active, complementary = crcl_loss(*matched, torch.ones(2), targets, complementary_weight=5.0)
        >>> loss, active
        (tensor(2.4594), tensor(0.4440))
    """
    active = (labels * active_losses(image_to_text, text_to_image)).mean()
    complementary = complementary_losses(image_to_text, text_to_image, 1 - labels, targets).mean()
    return active + complementary_weight * complementary, active, complementary
