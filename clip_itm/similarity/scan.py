"""Stacked cross attention (Lee et al., ECCV 2018; docs/papers/polyloss.md 4).

    s[q, c] = <query q, context c>            t2i: words query regions; i2t: regions query words
    s'      = s, normalised over the queries of each context vector
    alpha   = softmax over contexts of (softmax_scale * s')
    a_q     = sum_c alpha[q, c] context_c
    rho_q   = <query q, a_q> / max(||query q|| ||a_q||, 1e-8)
    S       = rho aggregated over the queries: Mean, Sum, Max or LogSumExp

a_q is never computed: <query q, a_q> = sum_c alpha[q, c] s[q, c], and ||a_q||^2 = alpha_q^T G alpha_q with the Gram
matrix G of the contexts (docs/papers/polyloss.md 4.4).
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_itm.similarity.configuration import ScanSection
from clip_itm.similarity.tokens import EPSILON, TokenSimilarity, safe_sqrt, token_mask


def first_normalization(scores: Tensor, queries: Tensor, kind: str) -> Tensor:
    """s' of s [..., Nq, q] over its last axis; `queries` bool [Nq, q], False at padding, whose scores are 0."""
    if kind == "softmax":
        return scores.masked_fill(~queries, torch.finfo(scores.dtype).min).softmax(dim=-1)
    if kind.startswith("clipped"):
        scores = F.leaky_relu(scores, 0.1)
    if kind.endswith("l2norm"):
        return scores / (safe_sqrt(scores.square().sum(dim=-1, keepdim=True)) + EPSILON)
    if kind.endswith("l1norm"):
        return scores / (scores.abs().sum(dim=-1, keepdim=True) + EPSILON)
    return scores


def relevance(queries: Tensor, contexts: Tensor, normalization: str, softmax_scale: float) -> Tensor:
    """rho [Nc, Nq, q] of queries [Nq, q, D] that attend to contexts [Nc, c, D]; padding is zero vectors."""
    query_mask, context_mask = token_mask(queries), token_mask(contexts)
    scores = contexts @ queries.flatten(0, 1).T  # [Nc, c, Nq * q]
    normalized = first_normalization(scores.unflatten(2, query_mask.shape), query_mask, normalization).flatten(2)
    # not -inf: the softmax of an item that is all padding must be a number
    logits = (softmax_scale * normalized).masked_fill(~context_mask[..., None], torch.finfo(scores.dtype).min)
    attention = logits.softmax(dim=1)
    dot = (attention * scores).sum(dim=1)
    gram = contexts @ contexts.transpose(1, 2)
    attended = safe_sqrt((attention * (gram @ attention)).sum(dim=1))
    lengths = safe_sqrt(queries.square().sum(dim=-1)).flatten()
    return (dot / (lengths * attended).clamp(min=EPSILON)).unflatten(1, query_mask.shape)


def aggregate(rho: Tensor, queries: Tensor, kind: str, lse_scale: float) -> Tensor:
    """S [..., Nq] of rho [..., Nq, q] over the queries that are not padding (bool [Nq, q]); 0 if all are padding."""
    if kind in ("Mean", "Sum"):
        total = (rho * queries).sum(dim=-1)
        return total / queries.sum(dim=-1).clamp(min=1) if kind == "Mean" else total
    rho = rho.masked_fill(~queries, -torch.inf).where(queries.any(dim=-1, keepdim=True), 0)
    if kind == "Max":
        return rho.amax(dim=-1)
    scores = (lse_scale * rho).logsumexp(dim=-1) / lse_scale
    return scores.where(queries.any(dim=-1), 0)


def scan_similarity(
    images: Tensor,
    texts: Tensor,
    direction: str,
    normalization: str = "clipped_l2norm",
    softmax_scale: float = 9.0,
    aggregation: str = "Mean",
    lse_scale: float = 6.0,
) -> Tensor:
    """S [Ni, Nt] of regions [Ni, R, D] and words [Nt, W, D], unit vectors; rows of zeros are padding."""
    queries, contexts = (texts, images) if direction == "t2i" else (images, texts)
    rho = relevance(queries, contexts, normalization, softmax_scale)
    scores = aggregate(rho, token_mask(queries), aggregation, lse_scale)
    return scores if direction == "t2i" else scores.T


class Scan(TokenSimilarity):
    """Stacked cross attention with the options of the published program."""

    config: ScanSection

    def forward(self, images: Tensor, texts: Tensor) -> Tensor:
        """Scores [Ni, Nt] of regions [Ni, R, D] and words [Nt, W, D]; see `scan_similarity`."""
        config = self.config
        compare = partial(
            scan_similarity,
            direction=config.direction,
            normalization=config.normalization,
            softmax_scale=config.attention_multiplier,
            aggregation=config.aggregation,
            lse_scale=config.lse_multiplier,
        )
        return torch.cat(self.in_blocks(compare, images, texts), dim=1)

    def bytes_of_pair(self, regions: int, words: int) -> int:
        """About eight matrices of regions x words in float32."""
        return 32 * regions * words
