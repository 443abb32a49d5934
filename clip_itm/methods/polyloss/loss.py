"""Universal weighting metric learning, PolyLoss (Wei et al., CVPR 2020; docs/papers/polyloss.md 3).

    p_i = S[i, i]           n_i = max_{j != i} S[i, j]                       one direction; the other one in S^T
    P(s) = max(0, 0.2 s^2 - 0.7 s + 0.5)                                     penalty of a positive
    Q(s) = max(0, 0.9 s^2 - 0.4 s + 0.03)                                    penalty of a negative
    active_i = p_i < 1 - 1e-5  and  n_i + margin > p_i
    loss = (1 / N) sum over both directions of sum_i active_i (P(p_i) + Q(n_i))

The gate reads raw scores. Q rises again below its smaller root (0.096): a very low hardest negative is pulled up.
"""

from typing import NamedTuple

import torch
from torch import Tensor

SATURATED = 1 - 1e-5


class Weighting(NamedTuple):
    """The two polynomials, coefficients from the highest order down, and how they are combined into a pair's loss."""

    positive: tuple[float, ...] = (0.2, -0.7, 0.5)
    negative: tuple[float, ...] = (0.9, -0.4, 0.03)
    joint_clamp: bool = False
    floor: float | None = None  # negatives below it cost nothing

    def penalty(self, positives: Tensor, negatives: Tensor) -> Tensor:
        """P(p) + Q(n), each clamped at 0, or their sum (`joint_clamp`); shapes broadcast."""
        of_positives = polynomial(positives, self.positive)
        of_negatives = polynomial(negatives, self.negative)
        if self.floor is not None:
            of_negatives = of_negatives.where(negatives > self.floor, 0)
        if self.joint_clamp:
            return (of_positives + of_negatives).relu()
        return of_positives.relu() + of_negatives.relu()


class Anchors(NamedTuple):
    """Losses of the local pairs in one direction, and what they come from."""

    losses: Tensor  # [b], 0 where not active
    active: Tensor  # bool [b]
    positives: Tensor  # [b]
    negatives: Tensor  # [b], the hardest; -inf where there is none


def polynomial(values: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """A polynomial of `values`, elementwise, by Horner's scheme; coefficients from the highest order down."""
    total = torch.full_like(values, coefficients[0])
    for coefficient in coefficients[1:]:
        total = total * values + coefficient
    return total


def polynomial_losses(
    scores: Tensor,
    targets: Tensor,
    same_image: Tensor,
    margin: float,
    weighting: Weighting = Weighting(),  # noqa: B008 (immutable)
    form: str = "max",
) -> Anchors:
    """Polynomial loss of every row, in one direction (docs/papers/polyloss.md 3).

    `scores` [b, B]; `targets` int64 [b], the row's own column; `same_image` bool [b, B], columns that are not negatives
    of the row, its own included. `form` "avg" replaces the hardest negative with the mean over all negatives that pass
    the gate, each on its own.

    Example:
        >>> scores = torch.tensor([[0.5, 0.4], [0.1, 0.9]])
        >>> anchors = polynomial_losses(scores, torch.arange(2), torch.eye(2, dtype=torch.bool), margin=0.2)
        >>> anchors.losses, anchors.active
        (tensor([0.2140, 0.0000]), tensor([ True, False]))
    """
    positives = scores.gather(1, targets[:, None])
    # argmax, not max: among equal negatives the first gets the whole gradient, on every device
    candidates = scores.masked_fill(same_image, -torch.inf)
    hardest = candidates.gather(1, candidates.argmax(dim=1, keepdim=True))
    gated = (positives < SATURATED) & (candidates + margin > positives)
    active = gated.any(dim=1)
    negatives, counted = (hardest, active[:, None]) if form == "max" else (candidates, gated)
    penalties = weighting.penalty(positives, negatives.where(counted, 0)).where(counted, 0)
    losses = penalties.sum(dim=1) / counted.sum(dim=1).clamp(min=1)
    return Anchors(losses, active, positives[:, 0], hardest[:, 0])
