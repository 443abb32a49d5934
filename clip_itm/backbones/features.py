"""What a tower gives, the same for images and captions and for every kind of backbone."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass
class Features:
    """Pooled features and tokens of a batch.

    `pooled` [B, D] (None if a neck makes it from the tokens); `tokens` [B, T, C] or None; `mask` bool [B, T], True at
    patches and words, or None (all are).
    """

    pooled: Tensor | None
    tokens: Tensor | None = None
    mask: Tensor | None = None

    def apply(self, layer: Callable[[Tensor], Tensor]) -> "Features":
        """`layer` on the pooled features, then on the tokens, if there are any."""
        pooled, tokens = (None if values is None else layer(values) for values in (self.pooled, self.tokens))
        return Features(pooled, tokens, self.mask)


@dataclass(frozen=True)
class FeatureWidths:
    """Widths after a backbone's necks: D of the pooled features of both modalities, C of each one's tokens."""

    pooled: int
    image_tokens: int
    text_tokens: int
