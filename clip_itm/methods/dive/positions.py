"""Positions that are added to the keys of slot attention (docs/papers/dive.md 4.5)."""

import math

import torch
from torch import Tensor, nn

LONGEST, LARGEST_SIDE = 100, 50  # rows of the learned tables


def sine(positions: Tensor, count: Tensor | int, width: int) -> Tensor:
    """Positions p [...] (1-based) among `count` to [..., width]: sine in even, cosine in odd channels, in float32.

    The angle 2 pi p / count runs once around; channels i, i + 1 slow it down by 10000^(i / width), i even.
    """
    angle = 2 * math.pi * positions.float() / (count + 1e-6)
    frequency = 10000 ** (torch.arange(0, width, 2, device=positions.device) / width)
    phase = angle[..., None] / frequency
    return torch.stack([phase.sin(), phase.cos()], dim=-1).flatten(-2)


def sine_grid(height: int, width: int, channels: int, device: torch.device | None = None) -> Tensor:
    """Positions [height * width, channels], row-major: the first half of the channels encodes the row, the last the
    column."""
    rows, columns = (sine(torch.arange(1, side + 1, device=device), side, channels // 2) for side in (height, width))
    return torch.cat([rows.repeat_interleave(width, 0), columns.repeat(height, 1)], dim=1)


class Positions(nn.Module):
    """Position embeddings of tokens, `channels` wide.

    `kind`: "sine" or "learned" along the tokens that count, "sine_grid" or "learned_grid" on a square of tokens.
    `of_batch`: along the padded length, as released. Otherwise a token's position does not depend on its batch.
    Raises ValueError for a number of channels that the kind cannot split.
    """

    def __init__(self, kind: str, channels: int, of_batch: bool = False):
        super().__init__()
        self.kind, self.channels, self.of_batch = kind, channels, of_batch
        halves = 4 if kind == "sine_grid" else 2
        if channels % halves:
            raise ValueError(
                f"head.module: {kind} positions need a token width divisible by {halves}, not {channels}; use none"
            )
        if kind == "learned":
            self.table = nn.Parameter(torch.rand(LONGEST, channels))
        if kind == "learned_grid":
            self.columns = nn.Parameter(torch.rand(LARGEST_SIDE, channels // 2))
            self.rows = nn.Parameter(torch.rand(LARGEST_SIDE, channels // 2))

    def forward(self, mask: Tensor) -> Tensor:
        """Positions [B, N, C] (on a grid [N, C]) for `mask` bool [B, N], the tokens that count.

        Raises ValueError for more tokens than a learned table has, and on a grid if N is not a square.
        """
        if self.kind.endswith("_grid"):
            return self._grid(mask)
        positions = (torch.ones_like(mask) if self.of_batch else mask).cumsum(dim=1)
        if self.kind == "sine":
            return sine(positions, positions[:, -1:], self.channels)
        if mask.shape[1] > LONGEST:
            raise ValueError(f"head.module: learned positions go up to {LONGEST} tokens, not {mask.shape[1]}; use sine")
        return self.table[(positions - 1).clamp(min=0)]

    def _grid(self, mask: Tensor) -> Tensor:
        side = math.isqrt(mask.shape[1])
        if side**2 != mask.shape[1]:
            raise ValueError(
                f"head.module.image_positions: {self.kind} needs a square grid of tokens, not {mask.shape[1]}; use none"
            )
        if self.kind == "sine_grid":
            return sine_grid(side, side, self.channels, mask.device)
        if side > LARGEST_SIDE:
            raise ValueError(
                f"head.module.image_positions: learned_grid goes up to {LARGEST_SIDE} tokens per side, not {side}; "
                "use sine_grid"
            )
        return torch.cat([self.columns[:side].repeat(side, 1), self.rows[:side].repeat_interleave(side, 0)], dim=1)
