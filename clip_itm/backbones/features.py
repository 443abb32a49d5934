"""The output of a tower, the same for images and captions and for every kind of backbone."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass
class Features:
    """`pooled` [B, D] (None if a neck computes it from the tokens); `tokens` [B, T, C] or None; `mask` bool [B, T],
    True at patches and words (None: everywhere)."""

    pooled: Tensor | None
    tokens: Tensor | None = None
    mask: Tensor | None = None

    def apply(self, layer: Callable[[Tensor], Tensor]) -> "Features":
        """Apply `layer` to the pooled features, then to the tokens, if there are any."""
        pooled, tokens = (None if values is None else layer(values) for values in (self.pooled, self.tokens))
        return Features(pooled, tokens, self.mask)


@dataclass(frozen=True)
class FeatureWidths:
    """Widths of features after the necks: D of the pooled features of both modalities, C of the tokens of each."""

    pooled: int
    image_tokens: int
    text_tokens: int
