"""Zero-shot classification: a class is the mean of its prompts (Radford et al. 2021, section 3.1.4)."""

from torch import Tensor
from torch.nn.functional import normalize


def class_vectors(prompts: Tensor) -> Tensor:
    """Unit vectors [K, D] of K classes: the means of the unit vectors of their prompts [K, T, D], normalised again."""
    return normalize(normalize(prompts.float(), dim=-1).mean(dim=1), dim=-1)


def top1_accuracy(images: Tensor, vectors: Tensor, labels: Tensor) -> float:
    """Percent of images [N, D] whose most similar class vector [K, D] is that of their label, int64 [N].

    Ties go to the first class.

    Example:
        >>> import torch
        >>> top1_accuracy(torch.eye(2), vectors=torch.eye(2), labels=torch.tensor([0, 0]))
        50.0
    """
    predicted = (images.float() @ vectors.T).argmax(dim=1)
    return 100 * (predicted == labels).float().mean().item()
