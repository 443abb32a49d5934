"""The losses of DivE (Kim et al., CVPR 2023; docs/papers/dive.md 6).

    L = i2t + t2i + 0.01 MMD + 0.01 (Div_images + Div_captions)

    i2t = mean_k [ margin - S_kk + max_{j: another image's} S_kj ]_+      S [B, B], rows are images, row k is pair k
    t2i   the same of S^T
    MMD = mean kernel(X, X) - 2 mean kernel(X, Y) + mean kernel(Y, Y)     X elements of all images, Y of all captions
    kernel(a, b) = exp(-gamma |a - b|)
    Div = mean over items of 2 / (K (K - 1)) sum_{k<l} exp(-2 |e_k - e_l|^2)      e_k unit slots

Both directions are means over pairs, so that the scale does not depend on the batch. An image with several captions in
the batch has several rows: each of its captions is an anchor, none a negative.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_itm.distributed import gather_constant, gather_with_gradient
from clip_itm.methods.triplet.head import hinge_losses


def triplet_losses(scores: Tensor, targets: Tensor, same_image: Tensor, margin: float, negatives: str) -> Tensor:
    """Loss of every local pair in one direction; the mean over all processes' pairs is that of the batch (6.1, 6.2).

    `scores` [b, B], `targets` int64 [b] (column of the row's own pair), `same_image` bool [b, B] (not negatives).
    `negatives`: "hardest" of the row; "all": the mean over all negatives of the batch; "clamped": hinges cut at the
    margin, over the number of those above 0. A row without negatives has loss 0.

    Example:
        >>> scores = torch.tensor([[0.9, 0.8, 0.1], [0.2, 0.9, 0.3], [0.9, 0.8, 0.9]])
        >>> triplet_losses(scores, torch.arange(3), torch.eye(3, dtype=torch.bool), margin=0.2, negatives="hardest")
        tensor([0.1000, 0.0000, 0.2000])
    """
    if negatives == "hardest":
        return hinge_losses(scores, targets, same_image, margin, hardest=True)
    if negatives == "all":
        sums, counts = hinge_losses(scores, targets, same_image, margin, hardest=False), (~same_image).sum()
    else:
        hinges = (margin - scores.gather(1, targets[:, None]) + scores).masked_fill(same_image, 0).clamp(0, margin)
        sums, counts = hinges.sum(dim=1), (hinges > 0).sum()
    return sums * scores.shape[1] / gather_constant(counts[None]).sum().clamp(min=1)


def laplacian_kernel(rows: Tensor, columns: Tensor, gamma: float = 0.5, squared: bool = False) -> Tensor:
    """exp(-gamma |a - b|) of vectors [n, D] and [m, D], or with the `squared` distance: [n, m] (6.3).

    The gradient at distance 0 is 0. Distances below the rounding of the product count as 0.
    """
    squares = (rows**2).sum(1)[:, None] + (columns**2).sum(1)[None] - 2 * rows @ columns.T
    apart = squares > 8 * torch.finfo(squares.dtype).eps
    squares = torch.where(apart, squares, 1)
    distances = squares if squared else squares.sqrt()
    return torch.where(apart, (-gamma * distances).exp(), 1)


def discrepancy(images: Tensor, texts: Tensor, gamma: float = 0.5, squared: bool = False) -> Tensor:
    """MMD of the elements of all images and captions; the mean over processes is that of the batch (6.3).

    `images` [b, K, D], `texts` [b, L, D]: local sets, each against those of all processes.
    """
    x, y = images.flatten(0, 1), texts.flatten(0, 1)
    all_x, all_y = gather_with_gradient(images).flatten(0, 1), gather_with_gradient(texts).flatten(0, 1)
    within = [laplacian_kernel(rows, columns, gamma, squared).mean() for rows, columns in ((x, all_x), (y, all_y))]
    return sum(within) - 2 * laplacian_kernel(x, all_y, gamma, squared).mean()


def _pairs_of_elements(slots: Tensor) -> Tensor:
    """Cosines [B, K (K - 1) / 2] of the slots [B, K, D] of an item."""
    slots = F.normalize(slots, dim=-1)
    first, second = torch.triu_indices(slots.shape[1], slots.shape[1], offset=1, device=slots.device)
    return (slots[:, first] * slots[:, second]).sum(dim=-1)


def diversity(slots: Tensor) -> Tensor:
    """Div of slots [B, K, D], a scalar; 0 for single elements (6.4).

    Example:
        >>> collapsed, orthogonal = torch.ones(1, 2, 4), torch.eye(2)[None]
        >>> diversity(collapsed), diversity(orthogonal)
        (tensor(1.), tensor(0.0183))
    """
    pairs = max(1, slots.shape[1] * (slots.shape[1] - 1) // 2)
    return (-4 * (1 - _pairs_of_elements(slots))).exp().sum(dim=1).mean() / pairs


def orthogonality(slots: Tensor) -> Tensor:
    """PVSE's penalty: norm of the cosines between different slots over K^2, mean over items (6.5)."""
    squares = 2 * (_pairs_of_elements(slots) ** 2).sum(dim=1)
    return (torch.where(squares > 0, squares, 1).sqrt() * (squares > 0)).mean() / slots.shape[1] ** 2


def circular_variance(sets: Tensor) -> Tensor:
    """1 - |mean of a set|, averaged over sets [B, K, D], without gradient: 0 if elements have collapsed (6.7)."""
    return 1 - sets.detach().mean(dim=1).norm(dim=-1).mean()
