"""The prototype loss of AAHR: each modality predicts the other's balanced assignment (docs/papers/aahr.md 6).

    o_i = f_i P^T, o_t = f_t P^T                                     P [K, D] of unit rows, shared
    q = Sinkhorn(o)                                                  without gradient, over the global batch
    L_b = - sum_k q_t log softmax(o_i / tau) - sum_k q_i log softmax(o_t / tau)

As in SwAV: pairs that mean the same share prototypes although they are labelled negatives.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_itm.distributed import gather_constant, process_index


@torch.no_grad()
def project_to_unit_length(prototypes: Tensor) -> None:
    """Normalise in place, outside the autograd graph: a projection before every use, not a reparametrisation."""
    prototypes.copy_(F.normalize(prototypes, dim=1))


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Balanced assignments [B, K] from `scores` [B, K]: rows add up to 1, and columns nearly to B / K.

    Example:
        >>> sinkhorn(torch.tensor([[1.0, 0.0], [1.0, 0.9]]), epsilon=0.1, iterations=3).round(decimals=2)
        tensor([[1.0000, 0.0000],
                [0.1400, 0.8600]])
    """
    samples, prototypes = scores.shape
    assignments = ((scores - scores.max()) / epsilon).exp()
    assignments /= assignments.sum()
    for _ in range(iterations):
        assignments /= assignments.sum(dim=0, keepdim=True) * prototypes
        assignments /= assignments.sum(dim=1, keepdim=True) * samples
    return assignments * samples


def prototype_losses(
    images: Tensor, texts: Tensor, prototypes: Tensor, temperature: float, epsilon: float, iterations: int
) -> Tensor:
    """L_b [b] of the local pairs (docs/papers/aahr.md 6).

    `images`, `texts` [b, D] embeddings; `prototypes` [K, D] with unit rows; `epsilon`, `iterations`: of `sinkhorn`.
    """
    own = slice(process_index() * len(images), (process_index() + 1) * len(images))
    image_scores, text_scores = images @ prototypes.T, texts @ prototypes.T
    image_targets, text_targets = (
        sinkhorn(gather_constant(scores.detach()), epsilon, iterations)[own] for scores in (image_scores, text_scores)
    )
    image_losses = F.cross_entropy(image_scores / temperature, text_targets, reduction="none")
    return image_losses + F.cross_entropy(text_scores / temperature, image_targets, reduction="none")
