"""The cosine of pooled features: one vector per image and per caption."""

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_itm.backbones.features import Features
from clip_itm.similarity.base import Similarity


class Cosine(Similarity):
    """The dot product of unit vectors; no weights."""

    is_dot_product = True

    def embed_images(self, features: Features) -> Tensor:
        """Unit vectors [B, D]."""
        assert features.pooled is not None, "the neck of a backbone makes them"
        return unit(features.pooled)

    def embed_texts(self, features: Features) -> Tensor:
        """Unit vectors [B, D]."""
        assert features.pooled is not None, "the neck of a backbone makes them"
        return unit(features.pooled)

    def forward(self, images: Tensor, texts: Tensor) -> Tensor:
        """Cosines [Ni, Nt] of unit vectors [Ni, D] and [Nt, D]."""
        return images @ texts.T

    def vectors(self, embeddings: Tensor) -> Tensor:
        """The embeddings themselves, [B, D]."""
        return embeddings


def unit(vectors: Tensor) -> Tensor:
    """Vectors [..., D] of length 1, at least float32."""
    if vectors.dtype in (torch.float16, torch.bfloat16):
        vectors = vectors.float()
    return F.normalize(vectors, dim=-1)
