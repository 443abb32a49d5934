"""The cosine of pooled features: one vector per image and per caption."""

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_itm.backbones.features import Features
from clip_itm.similarity.base import Similarity


class Cosine(Similarity):
    is_dot_product = True

    def embed_images(self, features: Features) -> Tensor:
        """Unit vectors [B, D]."""
        assert features.pooled is not None, "the neck of a backbone makes them"
        return unit(features.pooled)

    def embed_texts(self, features: Features) -> Tensor:
        assert features.pooled is not None, "the neck of a backbone makes them"
        return unit(features.pooled)

    def forward(self, images: Tensor, texts: Tensor) -> Tensor:
        return images @ texts.T

    def vectors(self, embeddings: Tensor) -> Tensor:
        return embeddings


def unit(vectors: Tensor) -> Tensor:
    """Vectors [..., D] of length 1, at least float32."""
    if vectors.dtype in (torch.float16, torch.bfloat16):
        vectors = vectors.float()
    return F.normalize(vectors, dim=-1)
