"""Many vectors to one: mean, maximum, generalised pooling (GPO) and self-attention over regions or words.

Every pooling takes tokens [B, T, C] and a mask bool [B, T] of those that count, and gives [B, C]; masked tokens have no
influence, whatever their values. Nothing to pool gives zeros.

GPO (Chen et al., CVPR 2021; docs/papers/crcl.md 6.1) sorts every feature over the tokens, largest first, and
sums with weights

    theta_n = softmax_t(w . h_t / 0.1),   h = BiGRU(code_0 .. code_{n-1}), directions averaged

that depend only on the number n of tokens: they are computed once for every number in the batch.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

CODE_WIDTH = 32  # of the rank codes and of the GRU over them
TEMPERATURE = 0.1


class MeanPooling(nn.Module):
    """The mean of every feature."""

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Tokens [B, T, C] and mask bool [B, T] to [B, C]."""
        return masked_mean(tokens, mask)


class MaxPooling(nn.Module):
    """The largest value of every feature."""

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Tokens [B, T, C] and mask bool [B, T] to [B, C]."""
        largest = tokens.masked_fill(~mask[..., None], -torch.inf).amax(dim=1)
        return largest.masked_fill(~mask.any(dim=1, keepdim=True), 0)


class GeneralisedPooling(nn.Module):
    """GPO: a weighted sum of every feature, sorted over the tokens (see the top of this module)."""

    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(CODE_WIDTH, CODE_WIDTH, batch_first=True, bidirectional=True)
        self.linear = nn.Linear(CODE_WIDTH, 1, bias=False)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Tokens [B, T, C] and mask bool [B, T] to [B, C]."""
        lengths = mask.sum(dim=1)
        weights = self.weights(lengths, tokens.shape[1])
        ranked = tokens.masked_fill(~mask[..., None], -torch.inf).sort(dim=1, descending=True).values
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        ranked = ranked.masked_fill((positions >= lengths[:, None])[..., None], 0)
        return (weights[..., None] * ranked).sum(dim=1)

    def weights(self, lengths: Tensor, width: int) -> Tensor:
        """theta [B, width] for sets of `lengths` int64 [B]; zero beyond the length."""
        distinct, which = lengths.clamp(min=1).unique(return_inverse=True)
        codes = rank_codes(width, CODE_WIDTH).to(self.linear.weight).expand(len(distinct), -1, -1)
        packed = pack_padded_sequence(codes, distinct.cpu(), batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=width)
        scores = self.linear(states.unflatten(2, (2, CODE_WIDTH)).mean(dim=2))[..., 0] / TEMPERATURE
        beyond = torch.arange(width, device=lengths.device) >= distinct[:, None]
        return scores.masked_fill(beyond, -torch.inf).softmax(dim=1)[which]


class AttentionPooling(nn.Module):
    """softmax_t(w2 . tanh(W1 x_t)) as weights: structured self-attention with one row (docs/papers/dive.md 4.9)."""

    def __init__(self, width: int):
        super().__init__()
        self.hidden = nn.Linear(width, width // 2, bias=False)
        self.score = nn.Linear(width // 2, 1, bias=False)
        for layer in (self.hidden, self.score):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Tokens [B, T, C] and mask bool [B, T] to [B, C]."""
        scores = self.score(self.hidden(tokens).tanh()).float()
        scores = scores.masked_fill(~mask[..., None], torch.finfo(scores.dtype).min)  # -inf gives NaN if none counts
        return (scores.softmax(dim=1) * mask[..., None] * tokens).sum(dim=1)


def make_pooling(kind: str, width: int) -> nn.Module:
    """A pooling by its name: mean, max, gpo or attention; `width` is C of the tokens. ValueError for another name."""
    match kind:
        case "mean":
            return MeanPooling()
        case "max":
            return MaxPooling()
        case "gpo":
            return GeneralisedPooling()
        case "attention":
            return AttentionPooling(width)
    raise ValueError(f"pooling: expected mean, max, gpo or attention, found {kind!r}")


def masked_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """Mean [B, C] of tokens [B, T, C] where `mask` [B, T] is True; zero if it is nowhere.

    Example:
        >>> masked_mean(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[True, True, False]]))
        tensor([[2.]])
    """
    total = tokens.masked_fill(~mask[..., None], 0).sum(dim=1)
    return total / mask.sum(dim=1, keepdim=True).clamp(min=1)


def rank_codes(count: int, width: int) -> Tensor:
    """Sinusoidal codes [count, width] of positions 0, 1, ...: sines and cosines in turn (docs/papers/crcl.md 6.1)."""
    positions = torch.arange(count, dtype=torch.float64)[:, None]
    angles = positions * 10000 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)
