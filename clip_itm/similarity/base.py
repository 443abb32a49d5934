"""What every similarity of images and captions has in common."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from clip_itm.backbones.features import Features


class Similarity(nn.Module, ABC):
    """From features to embeddings, and from embeddings to scores.

    An embedding is one tensor per item: a vector, a set or a grid of them; those of a split can be stacked.
    `needs_tokens`: whether it reads `Features.tokens`. `is_dot_product`: whether scores are dot products of
    embeddings [B, D], so that an index of vectors gives the scores itself and no candidate has to be ranked again.
    """

    needs_tokens = False
    is_dot_product = False

    @abstractmethod
    def embed_images(self, features: Features) -> Tensor:
        """Embeddings [B, ...], at least float32 (rounding of bfloat16 moves recall)."""

    @abstractmethod
    def embed_texts(self, features: Features) -> Tensor:
        """The same of captions."""

    @abstractmethod
    def forward(self, images: Tensor, texts: Tensor) -> Tensor:
        """Scores [Ni, Nt] of embeddings [Ni, ...] and [Nt, ...], rows are images."""

    @abstractmethod
    def vectors(self, embeddings: Tensor) -> Tensor:
        """One vector per embedding [B, D]; a search picks its candidates by their dot products."""
