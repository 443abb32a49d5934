"""Zero-shot classification: a class is the mean of its prompts (Radford et al. 2021, section 3.1.4)."""

from torch import Tensor
from torch.nn.functional import normalize


def class_vectors(prompts: Tensor) -> Tensor:
    """Prompts [K, T, D] (T of each of K classes) to the means of their unit vectors, of unit length again: [K, D]."""
    return normalize(normalize(prompts.float(), dim=-1).mean(dim=1), dim=-1)


def top1_accuracy(images: Tensor, vectors: Tensor, labels: Tensor) -> float:
    """Percent of images [N, D] whose class, int64 [N], has the largest cosine of `vectors` [K, D]; ties: the first."""
    predicted = (images.float() @ vectors.T).argmax(dim=1)
    return 100 * (predicted == labels).float().mean().item()
