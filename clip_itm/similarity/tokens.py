"""Similarities of token grids: regions or patches of an image against words of a caption, padded with zero vectors.

An embedding [B, T, D] carries its own mask: a row of zeros is padding. So it can be stored, gathered and cut into
blocks as one tensor.
"""

from abc import abstractmethod
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clip_itm.backbones.features import Features, FeatureWidths
from clip_itm.similarity.base import Similarity
from clip_itm.similarity.configuration import TokenSection

BLOCK_BYTES = 256 * 2**20  # for the pairs of a block
EPSILON = 1e-8


def token_mask(grid: Tensor) -> Tensor:
    """Bool [..., T] of a grid [..., T, D]: False at padding."""
    return (grid != 0).any(dim=-1)


def safe_sqrt(squares: Tensor) -> Tensor:
    """The root of `squares` >= 0, with gradient 0 instead of infinity at 0."""
    positive = squares > 0
    return torch.where(positive, squares, 1).sqrt().where(positive, 0)


def l2(vectors: Tensor) -> Tensor:
    """x / (||x|| + 1e-8) of vectors [..., D], zero for zero (docs/papers/polyloss.md 4.1)."""
    return vectors / (safe_sqrt(vectors.square().sum(dim=-1, keepdim=True)) + EPSILON)


def widened(tokens: Tensor) -> Tensor:
    """At least float32: cached features are float16, those from autocast bfloat16."""
    return tokens.to(torch.promote_types(tokens.dtype, torch.float32))


def unit_tokens(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Unit vectors [B, T, D], at least float32, and zeros at padding (`mask` bool [B, T])."""
    tokens = l2(widened(tokens))
    return tokens if mask is None else tokens * mask[..., None]


def resize(grid: Tensor, length: int) -> Tensor:
    """A grid [B, T, D] padded with zeros, or cut, to [B, length, D]."""
    return F.pad(grid[:, :length], (0, 0, 0, max(0, length - grid.shape[1])))


def without_padding(grid: Tensor) -> Tensor:
    """A grid [B, T, D] without the positions that are padding in all rows; at least one position stays."""
    kept = token_mask(grid).any(dim=0)
    return grid[:, kept] if kept.any() else grid[:, :1]


class TokenSimilarity(Similarity):
    """Unit vectors of tokens, projected if `config.token_dim` is set; a subclass compares the grids.

    Captions keep their first `config.max_words` tokens. In evaluation they are padded to that number, because the
    embeddings of a split have to stack. Raises ValueError if the widths differ and `token_dim` is not set.
    """

    needs_tokens = True

    def __init__(self, config: TokenSection, widths: FeatureWidths):
        super().__init__()
        self.config = config
        self.image_projection: nn.Module
        self.text_projection: nn.Module
        if config.token_dim is not None:
            self.image_projection = linear(widths.image_tokens, config.token_dim)
            self.text_projection = linear(widths.text_tokens, config.token_dim)
            self.dim = config.token_dim
        elif widths.image_tokens == widths.text_tokens:
            self.image_projection = self.text_projection = nn.Identity()
            self.dim = widths.image_tokens
        else:
            raise ValueError(
                f"head.similarity: tokens of photos have {widths.image_tokens} numbers and those of captions "
                f"{widths.text_tokens}; set head.similarity.token_dim, the width of linear layers on both"
            )

    def embed_images(self, features: Features) -> Tensor:
        """Regions or patches [B, R, D]: unit vectors, zeros where masked."""
        assert features.tokens is not None, "a head with `needs_tokens` gets them"
        return unit_tokens(self.image_projection(widened(features.tokens)), features.mask)

    def embed_texts(self, features: Features) -> Tensor:
        """Words [B, W, D]: unit vectors; W is `max_words` in evaluation, and at most that in training."""
        assert features.tokens is not None, "a head with `needs_tokens` gets them"
        words = unit_tokens(self.text_projection(widened(features.tokens)), features.mask)
        length = self.config.max_words
        return words[:, :length] if self.training else resize(words, length)

    def vectors(self, embeddings: Tensor) -> Tensor:
        """The direction of the mean token: [B, D]."""
        return l2(embeddings.sum(dim=1))

    @abstractmethod
    def bytes_of_pair(self, regions: int, words: int) -> int:
        """Bytes that one image and one caption take while they are compared in float32."""

    def in_blocks(self, compare: Callable, images: Tensor, texts: Tensor, *of_texts: Tensor) -> list:
        """What `compare(images, texts, *of_texts)` returns for each block of captions, in bounded memory.

        `of_texts` [Nt, ...] is split like the captions. If there are several blocks and gradients are needed, a block
        is computed again in the backward pass.
        """
        texts = without_padding(texts)
        pair = self.bytes_of_pair(images.shape[1], texts.shape[1]) * images.element_size() // 4
        size = max(1, BLOCK_BYTES // (pair * len(images)))
        if torch.is_grad_enabled() and size < len(texts):
            compare = partial(checkpoint, compare, use_reentrant=False, preserve_rng_state=False)
        blocks = zip(texts.split(size), *(part.split(size) for part in of_texts), strict=True)
        return [compare(images, without_padding(block), *parts) for block, *parts in blocks]


def linear(width: int, dim: int) -> nn.Linear:
    """Xavier-uniform weights and zero bias, as published (docs/papers/polyloss.md 4.1, docs/papers/crcl.md 6.9)."""
    layer = nn.Linear(width, dim)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
