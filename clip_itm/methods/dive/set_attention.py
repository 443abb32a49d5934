"""Slots that compete for the tokens of an image or a caption (docs/papers/dive.md 4).

    A = softmax over slots of q k^T / sqrt(dh)       [h, K, N], every token is divided among the slots
    W = A / (sum of A over tokens + 1e-7)            a slot takes the mean of its shares
    s = s + W v Wo + bo
    s = s + FFN(s)                                   T times

Padding is masked after the softmax over slots: if masked before, all slots of a padded token would score the same, and
each would get 1/K of it (4.6). So a set depends only on its own tokens.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from clip_itm.methods.dive.configuration import SlotsSection
from clip_itm.methods.dive.positions import Positions

ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU}


def slot_shares(scores: Tensor, mask: Tensor | None = None, leaky: bool = False) -> Tensor:
    """A: scores [B, h, K, N] to shares that add up to 1 over the slots K, in float32 or more.

    `mask` bool [B, N]: tokens that count; the others get 0 or, with `leaky`, 1/K as released.
    """
    shares = scores.to(torch.promote_types(scores.dtype, torch.float32)).softmax(dim=2)
    if mask is None:
        return shares
    return shares.masked_fill(~mask[:, None, None, :], 1 / shares.shape[2] if leaky else 0)


def token_weights(shares: Tensor) -> Tensor:
    """W: shares [..., N] to weights that add up to 1 over the tokens N (to 0 where there are none)."""
    return shares / (shares.sum(dim=-1, keepdim=True) + 1e-7)


class SlotLayer(nn.Module):
    """Attention and feed-forward layers of one iteration, each with the LayerNorms in front of it (pre-norm)."""

    def __init__(self, section: SlotsSection, width: int, token_width: int):
        super().__init__()
        self.heads, self.leaky = section.heads, section.compat_leaky_mask
        inner, hidden = section.heads * section.head_dim, section.ffn_mult * width
        self.query = nn.Linear(width, inner, bias=False)
        self.key = nn.Linear(token_width, inner, bias=False)
        self.value = nn.Linear(token_width, inner, bias=False)
        self.output = nn.Sequential(nn.Linear(inner, width), nn.Dropout(section.dropout))
        self.ffn = nn.Sequential(
            nn.Linear(width, hidden),
            ACTIVATIONS[section.activation](),
            nn.Dropout(section.dropout),
            nn.Linear(hidden, width),
        )
        norm = nn.LayerNorm if section.norm == "pre" else nn.Identity
        self.slot_norm, self.token_norm, self.ffn_norm = norm(width), norm(token_width), norm(width)

    def keys_values(self, tokens: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor]:
        """Tokens [B, N, C] to keys and values [B, h, N, dh]; only keys carry positions."""
        tokens = self.token_norm(tokens)
        keys = tokens if positions is None else tokens + positions.to(tokens.dtype)
        return self._split(self.key(keys)), self._split(self.value(tokens))

    def scores(self, slots: Tensor, keys: Tensor) -> Tensor:
        """Slots [B, K, D] against keys: [B, h, K, N]."""
        queries = self._split(self.query(self.slot_norm(slots)))
        return queries @ keys.transpose(2, 3) * keys.shape[-1] ** -0.5

    def attend(self, slots: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """What the slots take from the tokens, [B, K, D], and the attention weights [B, h, K, N]."""
        weights = token_weights(slot_shares(self.scores(slots, keys), mask, self.leaky))
        taken = weights.to(values.dtype) @ values
        return self.output(taken.transpose(1, 2).flatten(2)), weights

    def feed_forward(self, slots: Tensor) -> Tensor:
        """What the feed-forward layers add to the slots, [B, K, D]."""
        return self.ffn(self.ffn_norm(slots))

    def _split(self, rows: Tensor) -> Tensor:
        return rows.unflatten(2, (self.heads, -1)).transpose(1, 2)


class SlotBlock(nn.Module):
    """K learned slots, refined T times by the tokens: [B, N, C] and a mask to slots E [B, K, D].

    Post-norm LayerNorms are never tied over the iterations (docs/papers/dive.md 4.3).
    """

    def __init__(self, section: SlotsSection, elements: int, width: int, token_width: int, positions: str):
        super().__init__()
        self.iterations = section.iterations
        self.slots = nn.Parameter(torch.randn(elements, width))
        self.positions = (
            None if positions == "none" else Positions(positions, token_width, of_batch=section.compat_leaky_mask)
        )
        layers = 1 if section.tied else section.iterations
        self.layers = nn.ModuleList(SlotLayer(section, width, token_width) for _ in range(layers))
        pre = section.norm == "pre"
        after = nn.Identity if pre else nn.LayerNorm
        self.attention_norms = nn.ModuleList(after(width) for _ in range(section.iterations))
        self.ffn_norms = nn.ModuleList(after(width) for _ in range(section.iterations))
        self.final_norm = nn.LayerNorm(width) if pre else nn.Identity()

    def states(self, tokens: Tensor, mask: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Slots [B, K, D] and attention weights [B, h, K, N] of every iteration."""
        positions = None
        if self.positions is not None:
            everywhere = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
            positions = self.positions(everywhere if mask is None else mask)
        slots = self.slots.expand(len(tokens), -1, -1)
        for iteration in range(self.iterations):
            if iteration < len(self.layers):  # tied layers find the same keys and values every time
                layer = self.layers[iteration]
                keys, values = layer.keys_values(tokens, positions)
            taken, weights = layer.attend(slots, keys, values, mask)
            slots = self.attention_norms[iteration](slots + taken)
            slots = self.ffn_norms[iteration](slots + layer.feed_forward(slots))
            yield slots, weights

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """E [B, K, D], and the attention weights of the last iteration [B, h, K, N]."""
        for slots, weights in self.states(tokens, mask):  # noqa: B007
            pass
        return self.final_norm(slots), weights
