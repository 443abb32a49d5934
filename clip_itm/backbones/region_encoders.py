"""From region features [P, R, C] to the common width D, region by region, and what training does to regions first.

    linear     W x + b                                   SCAN, SAF, SGR
    mlp        (W x + b) + W2 relu(BN(W1 x + b1)) + b2   VSE-infinity, GPO
    residual   y = W x + b, y + W2 relu(BN(W1 y + b1)) + b2   DivE

docs/papers/crcl.md 6.3 (and docs/papers/polyloss.md 4.1), docs/papers/crcl.md 6.2, docs/papers/dive.md 3.1. The batch
norm counts the regions that are not masked.
"""

import torch
from torch import Tensor, nn

from clip_itm.backbones.masked_batch_norm import MaskedBatchNorm

ERASED = 1e-10  # what SAF and SGR write over a region


class RegionMlp(nn.Module):
    """Two layers with a batch norm over regions between them: [..., C] to [..., D] through D / 2."""

    def __init__(self, width: int, embed_dim: int):
        super().__init__()
        self.hidden = nn.Linear(width, embed_dim // 2)
        self.norm = MaskedBatchNorm(embed_dim // 2)
        self.output = nn.Linear(embed_dim // 2, embed_dim)

    def forward(self, regions: Tensor, counted: Tensor | None) -> Tensor:
        """Regions [..., C] to [..., D]; the batch norm counts those where `counted` bool [...] is True (None: all)."""
        return self.output(self.norm(self.hidden(regions), counted).relu())


class RegionEncoder(nn.Module):
    """One of the encoders at the top of this module, by its name.

    `norm_padding`: masked regions are rows of the batch norm, too, as zeros (as released).
    """

    def __init__(self, kind: str, width: int, embed_dim: int, norm_padding: bool = False):
        super().__init__()
        self.kind, self.norm_padding = kind, norm_padding
        self.linear = nn.Linear(width, embed_dim)
        if kind != "residual":  # which keeps the initialisation of torch (docs/papers/dive.md 4.8)
            nn.init.xavier_uniform_(self.linear.weight)
            nn.init.zeros_(self.linear.bias)
        if kind != "linear":
            self.mlp = RegionMlp(embed_dim if kind == "residual" else width, embed_dim)

    def forward(self, regions: Tensor, mask: Tensor) -> Tensor:
        """Regions [P, R, C] and the mask of those that count, bool [P, R], to [P, R, D]."""
        if self.norm_padding:
            regions = regions.masked_fill(~mask[..., None], 0)
        counted = None if self.norm_padding else mask
        encoded = self.linear(regions)
        if self.kind == "linear":
            return encoded
        return encoded + self.mlp(encoded if self.kind == "residual" else regions, counted)


def keep_regions(mask: Tensor, draws: Tensor, probability: float) -> Tensor:
    """Which regions of `mask` (bool [P, R]) stay if each is dropped with `probability`, by uniform draws [P, R].

    The region with the largest draw always stays; the released guard looks along the wrong axis
    (docs/papers/crcl.md 7.5).
    """
    draws = draws.masked_fill(~mask, -1)
    return (mask & (draws >= probability)) | (mask & (draws == draws.amax(dim=1, keepdim=True)))


def erase_regions(regions: Tensor, draws: Tensor, probability: float) -> Tensor:
    """A copy of `regions` [P, R, C], each overwritten with 1e-10 with `probability`, by uniform draws [P, R].

    See docs/papers/crcl.md 7.5.
    """
    return torch.where((draws < probability)[..., None], ERASED, regions)
