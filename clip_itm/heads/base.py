"""What every head has in common: embeddings, their similarity, a loss, and what it must remember between steps."""

from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_itm.backbones.features import Features


class Head(nn.Module, ABC):
    """One vector a photo and a caption, compared by cosine; a subclass brings the loss.

    `citation`: BibTeX of the method. What a head remembers of the training pairs from step to step (a label each,
    say) is no part of the model: it lives in plain attributes, and its trainer keeps it beside the checkpoint.
    """

    citation: str
    config: Any

    def embed_images(self, features: Features) -> Tensor:
        """Unit vectors [B, D], at least float32 (rounding of bfloat16 moves recall)."""
        return _unit(features.pooled)

    def embed_texts(self, features: Features) -> Tensor:
        return _unit(features.pooled)

    def similarity(self, images: Tensor, texts: Tensor) -> Tensor:
        """Cosine of embeddings [Ni, D] and [Nt, D]: [Ni, Nt], rows are photos."""
        return images @ texts.T

    def vectors(self, embeddings: Tensor) -> Tensor:
        """One vector [B, D] an embedding, by whose dot products a search picks its candidates."""
        return embeddings

    @property
    def is_dot_product(self) -> bool:
        """Whether an index of vectors gives the similarity itself, and no candidate has to be ranked again."""
        return type(self).similarity is Head.similarity

    @property
    def is_plain(self) -> bool:
        """Whether the similarity is the cosine of the backbone's pooled features: whether the towers are enough."""
        own = ("embed_images", "embed_texts", "similarity")
        return all(getattr(type(self), name) is getattr(Head, name) for name in own)

    @abstractmethod
    def scale(self) -> Tensor:
        """The multiplier of cosines in the loss: one over the temperature."""

    @abstractmethod
    def loss(
        self,
        images: Tensor,
        texts: Tensor,
        image_ids: Tensor,
        pair_ids: Tensor,
        pair_weight: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss of the global batch over its local pairs, and what to log.

        `images`, `texts` [b, D] (row k is pair k), `image_ids`, `pair_ids` int64 [b]; `pair_weight` [b] in [0, 1]
        where the data set brings weights of its own.
        """


def _unit(vectors: Tensor) -> Tensor:
    if vectors.dtype in (torch.float16, torch.bfloat16):
        vectors = vectors.float()
    return F.normalize(vectors, dim=-1)
