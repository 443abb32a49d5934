"""Similarity vectors of SGRAF (Diao et al., AAAI 2021; docs/papers/crcl.md 6.4-6.6), on which SAF and SGR reason.

    a_w   = sum_r softmax over regions of (9 s'[r, w]) v_r, of unit length      cross attention of word w
    local_w  = l2(W (a_w - e_w)^2 + b)                                          a node per word
    global   = l2(W' (v - t)^2 + b')                                            node 0, of the global vectors v and t

Squares are element-wise, so the attended vectors have to be computed: blocks of captions bound their memory.
"""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from clip_itm.backbones.features import FeatureWidths
from clip_itm.similarity.configuration import GraphSection
from clip_itm.similarity.scan import first_normalization
from clip_itm.similarity.tokens import TokenSimilarity, l2, linear, token_mask

ATTENTION_SCALE = 9.0


def attended_regions(images: Tensor, texts: Tensor) -> Tensor:
    """Unit vectors [Ni, Nt, W, D]: what each word [Nt, W, D] finds among the regions [Ni, R, D] (6.5)."""
    words = token_mask(texts)
    scores = images @ texts.flatten(0, 1).T  # [Ni, R, Nt * W]
    normalized = first_normalization(scores.unflatten(2, words.shape), words, "clipped_l2norm").flatten(2)
    logits = ATTENTION_SCALE * normalized
    logits = logits.masked_fill(~token_mask(images)[..., None], torch.finfo(logits.dtype).min)
    attended = logits.softmax(dim=1).transpose(1, 2) @ images
    return l2(attended).unflatten(1, words.shape)


class GlobalVector(nn.Module):
    """One unit vector [B, D] from a token grid [B, T, D]: tokens weighted by what they share with their mean (6.4).

    With `regions` both branches have a batch norm; that of the tokens has a channel per position, so T is fixed.
    """

    def __init__(self, dim: int, dropout: float, regions: int | None = None):
        super().__init__()
        self.local, self.mean, self.weight = linear(dim, dim), linear(dim, dim), linear(dim, 1)
        self.local_norm = nn.Identity() if regions is None else nn.BatchNorm1d(regions)
        self.mean_norm = nn.Identity() if regions is None else nn.BatchNorm1d(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """Unit vectors [B, D] of tokens [B, T, D]; rows of zeros are padding."""
        mask = token_mask(tokens)
        mean = tokens.sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1)
        local = self.dropout(self.local_norm(self.local(tokens)).tanh())
        mean = self.dropout(self.mean_norm(self.mean(mean)).tanh())
        logits = self.weight(local * mean[:, None])[..., 0]
        weights = logits.masked_fill(~mask, torch.finfo(logits.dtype).min).softmax(dim=1)
        return l2((weights[:, None] @ tokens)[:, 0])


class GraphSimilarity(TokenSimilarity):
    """Similarity vectors of every image and caption, from which a subclass makes a score in (0, 1)."""

    config: GraphSection

    def __init__(self, config: GraphSection, widths: FeatureWidths):
        super().__init__(config, widths)
        self.image_vector = GlobalVector(self.dim, config.dropout, config.regions)
        self.text_vector = GlobalVector(self.dim, config.dropout)
        self.local_difference = linear(self.dim, config.similarity_dim)
        self.global_difference = linear(self.dim, config.similarity_dim)
        self.score = linear(config.similarity_dim, 1)

    @abstractmethod
    def reason(self, nodes: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """Scores [Ni, Nt], and whatever else a block of captions reports, of nodes [Ni, Nt, 1 + W, K].

        `mask` bool [Nt, 1 + W]: False at padding.
        """

    def blocks(self, images: Tensor, texts: Tensor) -> list[tuple[Tensor, ...]]:
        """What `reason` returns for each block of captions; ValueError unless images have `config.regions` tokens."""
        if images.shape[1] != self.config.regions:
            raise ValueError(
                f"head.similarity.regions: {self.config.regions}, but photos have {images.shape[1]} tokens; write "
                f"regions: {images.shape[1]}"
            )
        image_vectors = self.image_vector(images)

        def compare(images: Tensor, texts: Tensor, text_vectors: Tensor) -> tuple[Tensor, ...]:
            local = l2(self.local_difference((attended_regions(images, texts) - texts).square()))
            whole = l2(self.global_difference((image_vectors[:, None] - text_vectors).square()))
            words = token_mask(texts)
            mask = torch.cat([torch.ones_like(words[:, :1]), words], dim=1)
            return self.reason(torch.cat([whole[:, :, None], local], dim=2), mask)

        return self.in_blocks(compare, images, texts, self.text_vector(texts))

    def bytes_of_pair(self, regions: int, words: int) -> int:
        """About four matrices of regions x words, four vectors per word in both widths, and the graph."""
        return 16 * words * (regions + self.dim + 2 * self.config.similarity_dim)
