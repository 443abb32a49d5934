"""What every similarity of images and captions has in common."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from clip_itm.backbones.features import Features


class Similarity(nn.Module, ABC):
    """From features to embeddings, and from embeddings to scores.

    An embedding is one tensor per item: a vector, or a set or grid of vectors; those of a split can be stacked.
    `needs_tokens`: whether it reads `Features.tokens`. `is_dot_product`: whether scores are dot products of
    embeddings [B, D], so that an index of vectors gives them directly and no candidate has to be ranked again.
    """

    needs_tokens = False
    is_dot_product = False

    @abstractmethod
    def embed_images(self, features: Features) -> Tensor:
        """Embeddings [B, ...], at least float32 (rounding of bfloat16 moves recall)."""

    @abstractmethod
    def embed_texts(self, features: Features) -> Tensor:
        """Embeddings of captions [B, ...], at least float32."""

    @abstractmethod
    def forward(self, images: Tensor, texts: Tensor) -> Tensor:
        """Scores [Ni, Nt] of embeddings [Ni, ...] and [Nt, ...]: one row per image."""

    @abstractmethod
    def vectors(self, embeddings: Tensor) -> Tensor:
        """One vector per embedding, [B, D], by whose dot products a search picks its candidates."""
