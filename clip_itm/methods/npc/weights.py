"""How far to trust each pair of a batch, from what a trial step did to its memory entries (docs/papers/npc.md 2.3).

    r[k] = (before_image[k] / after_image[k] + before_caption[k] / after_caption[k]) / 2
    w[k] = tanh(r[k]) if r[k] < 1, else 1

`before` and `after` are losses of the memory entries of pair k (the one of its image, the one of its caption) under the
weights before and after the trial step. Entries that got worse (r < 1) say that the pair is harmful.
"""

import math

import torch
from torch import Tensor


def improvement_ratio(before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor]) -> Tensor:
    """r [b] from the losses of image-keyed and caption-keyed entries, [b] each, before and after the trial step.

    A loss of 0 after the trial cannot be worse than before: its ratio is infinite and the weight 1, as in the released
    program, where 0/0 is NaN and a comparison with NaN is false.

    Example:
        >>> before = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0])
        >>> after = torch.tensor([0.5, 4.0]), torch.tensor([0.8, 4.0])
        >>> ratio = improvement_ratio(before, after)
        >>> ratio, confidence_weight(ratio)
        (tensor([1.6250, 0.5000]), tensor([1.0000, 0.4621]))
    """
    ratios = [torch.where(new > 0, old / new, torch.inf) for old, new in zip(before, after, strict=True)]
    return (ratios[0] + ratios[1]) / 2


def confidence_weight(ratio: Tensor, weight_fn: str = "tanh_step") -> Tensor:
    """w [b] in [0, 1] of r [b]: `tanh_step` as published; `tanh` without the jump from 0.76 to 1; `ratio` min(r, 1)."""
    below = ratio.clamp(max=1)
    if weight_fn == "ratio":
        return below
    if weight_fn == "tanh":
        return below.tanh() / math.tanh(1)
    return torch.where(ratio < 1, below.tanh(), 1.0)
