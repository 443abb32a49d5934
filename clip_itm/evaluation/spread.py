"""How alike the embeddings of a split are: a collapsed model gives all images, or all captions, one direction."""

from torch import Tensor


def mean_cosine(embeddings: Tensor) -> float:
    """Mean cosine between two different rows of unit vectors [N, D]: 1 when all are the same."""
    count = len(embeddings)
    if count < 2:
        return 0.0
    total = embeddings.double().sum(dim=0).square().sum()
    return float((total - count) / (count * (count - 1)))


def cosine_gap(images: Tensor, texts: Tensor, caption_image: Tensor) -> float:
    """Mean cosine of a caption with its own image, minus that with all images; unit vectors [Ni, D] and [Nt, D]."""
    images, texts = images.double(), texts.double()
    own = (images[caption_image] * texts).sum(dim=1).mean()
    return float(own - images.mean(dim=0) @ texts.mean(dim=0))
