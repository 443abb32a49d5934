"""From the features of an image or a caption to its set of unit vectors (docs/papers/dive.md 4.7, 4.9 and 11)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_itm.backbones.features import Features
from clip_itm.methods.dive.configuration import DiveHeadConfig
from clip_itm.methods.dive.set_attention import SlotBlock
from clip_itm.similarity.cosine import unit


class SetOutput(NamedTuple):
    """What the loss needs of an item."""

    sets: Tensor  # S [B, K, D], unit vectors
    slots: Tensor  # E [B, K, D], before the pooled feature is added
    entropy: Tensor  # [B] nats, of the slots' attention over tokens, without gradient


class PvseAttention(nn.Module):
    """One attention over the tokens per element (PVSE, Song and Soleymani, CVPR 2019; docs/papers/dive.md 4.9)."""

    def __init__(self, elements: int, width: int, token_width: int):
        super().__init__()
        self.hidden = nn.Linear(token_width, token_width // 2, bias=False)
        self.score = nn.Linear(token_width // 2, elements, bias=False)
        self.output = nn.Linear(token_width, width)
        for layer in (self.hidden, self.score):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tokens [B, N, C] to residuals [B, K, D] and attention weights [B, 1, K, N]."""
        scores = self.score(self.hidden(tokens).tanh()).transpose(1, 2)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        if mask is not None:
            # not -inf: a caption without words would become NaN
            scores = scores.masked_fill(~mask[:, None, :], torch.finfo(scores.dtype).min)
        weights = scores.softmax(dim=2)
        return self.output(weights.to(tokens.dtype) @ tokens).sigmoid(), weights[:, None]


class SetPrediction(nn.Module):
    """Slots of the tokens, joined with the pooled feature.

    With residual "gated" and the gate at 0 every element is the pooled feature's direction: similarities rank as the
    cosine of a pretrained CLIP does.
    """

    def __init__(self, config: DiveHeadConfig, elements: int, width: int, token_width: int, positions: str):
        super().__init__()
        self.residual = config.residual
        if config.module.kind == "slots":
            self.attention = SlotBlock(config.module, elements, width, token_width, positions)
        else:
            self.attention = PvseAttention(elements, width, token_width)
        if config.residual in ("ln_sum", "ln_of_sum"):
            self.norm = nn.LayerNorm(width)
        if config.residual == "gated":
            self.gate = nn.Parameter(torch.tensor(config.gate_init))

    def forward(self, features: Features) -> SetOutput:
        slots, weights = self.attention(features.tokens, features.mask)
        entropy = torch.special.entr(weights.detach()).sum(dim=-1).mean(dim=(1, 2))
        # sums and norms of elements in float32 or more, whatever the towers run in
        pooled, slots = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (features.pooled, slots))
        return SetOutput(unit(self.join(pooled[:, None], slots)), slots, entropy)

    def join(self, pooled: Tensor, slots: Tensor) -> Tensor:
        """Pooled feature [B, 1, D] and slots [B, K, D] to elements [B, K, D], before normalisation."""
        match self.residual:
            case "ln_sum":
                return self.norm(pooled) + slots
            case "gated":
                return F.normalize(pooled, dim=-1) + self.gate * slots * slots.shape[-1] ** -0.5
            case "sum":
                return pooled + slots
            case "ln_of_sum":
                return self.norm(pooled + slots)
            case "none":
                return slots
