"""Self-attention whose projections are plain linear layers, for adapters."""

import torch.nn.functional as F
from torch import Tensor, nn


class LinearAttention(nn.Module):
    """An `nn.MultiheadAttention` of one input, rewritten with `in_proj` [3E, E] and `out_proj` [E, E] as `nn.Linear`.

    peft can adapt `nn.MultiheadAttention` itself only by replacing its parameters in every forward pass: frozen weights
    then drift by rounding, an evaluation in inference mode breaks the training after it, and `lora.dropout` does
    nothing.
    """

    def __init__(self, attention: nn.MultiheadAttention):
        super().__init__()
        if not attention.batch_first or attention.in_proj_weight is None or attention.dropout:
            raise ValueError("lora: this attention layer has a form of its own and cannot be adapted")
        self.num_heads = attention.num_heads
        self.in_proj = nn.Linear(attention.embed_dim, 3 * attention.embed_dim)
        self.in_proj.weight, self.in_proj.bias = attention.in_proj_weight, attention.in_proj_bias
        self.out_proj = nn.Linear(attention.embed_dim, attention.embed_dim)
        self.out_proj.weight, self.out_proj.bias = attention.out_proj.weight, attention.out_proj.bias

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = False, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """`query` [B, T, E], which must also be `key` and `value`; `attn_mask` [T, T] is added to the scores."""
        if not (query is key is value) or need_weights:
            raise ValueError("LinearAttention is self-attention and gives no weights")
        batch, length, _ = query.shape
        heads = self.in_proj(query).view(batch, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(
            *heads, attn_mask=None if attn_mask is None else attn_mask.to(heads.dtype)
        )
        return self.out_proj(mixed.transpose(1, 2).flatten(2)), None
