"""What a tower gives, the same for photos and captions and for every kind of backbone."""

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Features:
    """`pooled` [B, D]; `tokens` [B, T, C] or None; `mask` bool [B, T], True at patches and words, or None (all are)."""

    pooled: Tensor
    tokens: Tensor | None = None
    mask: Tensor | None = None
