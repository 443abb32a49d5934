"""The encoder of AAHR: one vector from a global vector and local ones (Chen et al., KBS 2025; docs/papers/aahr.md 4).

    u = projection(tokens), g = projection(pooled)                    u [B, N, D], g [B, D]
    h = transformer layer(u)                                          without positions
    p = mean over heads of sum_n softmax_n(cos(Wq g, Wk h_n)) Wv h_n  global-guided pooling
    l = beta * max-k(u) + (1 - beta) * p
    f = z * l / |l| + (1 - z) * g / |g|,  z = sigmoid(Wz [l / |l|; g / |g|] + bz)

f is what is compared; it is not normalised again. Each head of the pooling is as wide as the embedding.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_itm.backbones.features import Features
from clip_itm.backbones.region_encoders import RegionEncoder, keep_regions
from clip_itm.methods.aahr.configuration import AahrHeadConfig


class Encoded(NamedTuple):
    """What the loss needs of an image or a caption."""

    fused: Tensor  # f [B, D]
    local: Tensor  # l [B, D], not normalised
    fragments: Tensor  # u [B, N, D], without gradient
    mask: Tensor  # bool [B, N], True at regions, patches or words


class GuidedPooling(nn.Module):
    """Attention of the global vector to the local vectors (docs/papers/aahr.md 4.3)."""

    def __init__(self, embed_dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(embed_dim, num_heads * embed_dim)
        self.key = nn.Linear(embed_dim, num_heads * embed_dim)
        self.value = nn.Linear(embed_dim, num_heads * embed_dim)

    def forward(self, pooled: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """[B, D], [B, N, D] and bool [B, N] to [B, D]."""
        heads = (self.num_heads, tokens.shape[-1])
        query = self.query(pooled).unflatten(-1, heads)
        key = self.key(tokens).unflatten(-1, heads)
        pooled_tokens = torch.einsum("bhn,bnd->bhd", pooling_weights(query, key, mask).to(tokens.dtype), tokens)
        # weights add up to 1, so the value map can be applied after the sum: to H vectors instead of H * N
        weight = self.value.weight.unflatten(0, heads)
        bias = self.value.bias.unflatten(0, heads).mean(dim=0)
        return torch.einsum("bhd,hed->be", pooled_tokens, weight) / self.num_heads + bias


def pooling_weights(query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
    """Softmax over n of cosines, without temperature: [B, H, D], [B, N, H, D] and bool [B, N] to [B, H, N]."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    query, key = query.to(dtype), key.to(dtype)
    lengths = query.norm(dim=-1)[..., None] * key.norm(dim=-1).transpose(1, 2)
    cosine = torch.einsum("bhd,bnhd->bhn", query, key) / lengths.clamp(min=1e-12)
    return cosine.masked_fill(~mask[:, None], -torch.inf).softmax(dim=-1)


def max_k(tokens: Tensor, mask: Tensor, k: int) -> Tensor:
    """Mean of the k largest values of each dimension over the tokens that count (of all, if fewer than k do) (4.4).

    [B, N, D], bool [B, N] to [B, D].
    """
    k = min(k, tokens.shape[1])
    largest = tokens.masked_fill(~mask[..., None], -torch.inf).topk(k, dim=1).values
    count = mask.sum(dim=1).clamp(max=k)
    absent = torch.arange(k, device=mask.device) >= count[:, None]
    return largest.masked_fill(absent[..., None], 0).sum(dim=1) / count.clamp(min=1)[:, None]


class TokenEncoder(nn.Module):
    """Features of images or captions to `Encoded`. Padding changes nothing, unless `config.mask_padding` is off."""

    def __init__(self, config: AahrHeadConfig, tokens_width: int, pooled_width: int, projection: str = "linear"):
        super().__init__()
        self.config = config
        width = config.embed_dim
        self.projection = RegionEncoder(projection, tokens_width, width)
        self.pooled_projection = nn.Linear(pooled_width, width)
        nn.init.xavier_uniform_(self.pooled_projection.weight)
        nn.init.zeros_(self.pooled_projection.bias)
        # not batch_first: its fast path without gradients zeroes padding, which mask_padding: false needs
        self.transformer = nn.TransformerEncoderLayer(width, config.num_heads, width, config.dropout)
        self.pooling = GuidedPooling(width, config.pooling_heads)
        self.gate = nn.Linear(2 * width, width)

    def forward(self, features: Features, token_dropout: float = 0.0) -> Encoded:
        tokens, mask = features.tokens, features.mask
        if mask is None:
            mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        if self.training and token_dropout:
            mask = keep_regions(mask, torch.rand(mask.shape, device=mask.device), token_dropout)
            tokens = tokens.masked_fill(~mask[..., None], 0)
        mask = _at_least_one(mask)
        counted = mask if self.config.mask_padding else torch.ones_like(mask)
        fragments = self.projection(tokens, counted)
        mixed = self.transformer(fragments.transpose(0, 1), src_key_padding_mask=~mask).transpose(0, 1)
        pooled = self.pooled_projection(features.pooled)
        beta = self.config.beta
        local = beta * max_k(fragments, mask, self.config.max_k) + (1 - beta) * self.pooling(pooled, mixed, counted)
        fused = self.fuse(local, pooled)
        return Encoded(fused, local, fragments.detach(), mask)

    def fuse(self, local: Tensor, pooled: Tensor) -> Tensor:
        """f [B, D], float32 or better, from l and g [B, D] (docs/papers/aahr.md 4.5)."""
        dtype = torch.promote_types(local.dtype, torch.float32)
        local, pooled = F.normalize(local.to(dtype), dim=-1), F.normalize(pooled.to(dtype), dim=-1)
        gate = self.gate(torch.cat([local, pooled], dim=-1)).to(dtype).sigmoid()
        fused = gate * local + (1 - gate) * pooled
        return F.normalize(fused, dim=-1) if self.config.normalize_output else fused


def _at_least_one(mask: Tensor) -> Tensor:
    """For a caption without words the first token counts, so that no softmax is empty."""
    first = torch.arange(mask.shape[1], device=mask.device) == 0
    return mask | (first & ~mask.any(dim=1, keepdim=True))
