"""LEMoN: a caption is suspicious if captions of similar images, or images of similar captions, are far from it.

Zhang et al., ICML 2025 (arXiv 2407.18941), with the fixed settings of the paper. From vectors alone, without training.

    x, y     unit vectors of an image and a caption; d(a, b) = 1 - a . b
    N(x)     the k pairs of other images whose images are nearest to x
    M(y)     the k pairs with other texts whose captions are nearest to y
    s_n      1/k sum over j in N(x) of d(y, y_j) exp(-tau1 d(x, x_j)) exp(-tau2 d(x_j, y_j))
    s_m      1/k sum over j in M(y) of d(x, x_j) exp(-tau1 d(y, y_j)) exp(-tau2 d(x_j, y_j))
    score    d(x, y) + beta s_n + gamma s_m

Captions of one image are all equally near to x, and equal texts to y: if only some of them fit among the k, all share
the places. So neighbours are searched among images and distinct texts, and their sums are linear in y and in x.
The released program weights by exp(tau1 * inner product) instead: a constant factor exp(tau1) on s_n and s_m.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from clip_itm.auditing.scores import Scores
from clip_itm.precision import exact_float32

NEIGHBOURS = 30  # k
BETA = GAMMA = 5.0
TAU1, TAU2 = 0.1, 5.0


class _Groups(NamedTuple):
    """Pairs with the same image (or text), in G groups: the vector that they share, and sums of their weights.

    `vectors` [G, D]; `number` int64 [G], of images (or texts), ascending; `size` [G]: pairs; `weight` [G]: sum of
    exp(-tau2 d(x_j, y_j)); `others` [G, D]: the same times the vector of the caption (or image).
    """

    vectors: Tensor
    number: Tensor
    size: Tensor
    weight: Tensor
    others: Tensor


def lemon_scores(
    images: Tensor,
    texts: Tensor,
    image: np.ndarray,
    mismatch: np.ndarray,
    text: np.ndarray,
    k: int = NEIGHBOURS,
    compared: np.ndarray | None = None,
    cells: int = 2**24,
) -> Scores:
    """Scores of pairs and of made mismatches, the mismatch of pair k as if pair k had its caption.

    images: [P, D] unit vectors. texts: [N, D], of the caption of every pair. image: int64 [N], the image of every pair.
    mismatch: int64 [N], the pair whose caption its image is given. text: int64 [N], equal for equal captions.
    k: neighbours. compared: int64 [C], the pairs among which neighbours are searched; if None, all. cells: similarities
    held at once; memory: three float32 matrices of that size, and two [N, D].

    Raises ValueError if a pair has fewer than k others to compare with.
    """
    compared = np.arange(len(image)) if compared is None else compared
    _check(image, text, compared, k)
    owners, captions = (torch.from_numpy(index).to(images.device) for index in (image, text))
    with torch.inference_mode(), exact_float32(images.device):
        weight = torch.exp(-TAU2 * (1 - torch.einsum("nd,nd->n", images[owners], texts)))
        chosen = torch.from_numpy(compared).to(images.device)
        of_images = _group(owners[chosen], images, texts[chosen], weight[chosen])
        texts_by_number = texts.new_empty(int(captions.max()) + 1, texts.shape[1])
        texts_by_number[captions] = texts
        of_texts = _group(captions[chosen], texts_by_number, images[owners[chosen]], weight[chosen])
        level, slope = _among_images(images, of_images, k, cells)
        is_compared = torch.zeros(len(image), dtype=torch.bool, device=images.device)
        is_compared[chosen] = True
        found = np.empty((2, len(image)))
        borrower = np.argsort(mismatch)  # the pair whose image is given the caption of each pair
        for now in torch.arange(len(image)).split(_at_once(of_texts, k, cells)):
            y, own = texts[now], captions[now]
            nearest = _nearest(y, of_texts, own, k)
            for kind, pairs in enumerate((now, torch.from_numpy(borrower)[now])):
                x = images[owners[pairs]]
                # the pair itself is not a neighbour of the mismatch that takes its place
                replaced = captions[pairs] if kind else torch.full_like(own, -1)
                replaced = replaced.masked_fill(~is_compared[pairs], -1)
                s_m = _among_texts(x, of_texts, nearest, replaced, k)
                s_n = (level[owners[pairs]] - torch.einsum("bd,bd->b", y, slope[owners[pairs]])) / k
                score = 1 - torch.einsum("bd,bd->b", x, y) + BETA * s_n + GAMMA * s_m
                found[kind, pairs.numpy()] = score.double().cpu().numpy()
    return Scores(found[0], found[1])


def _group(owner: Tensor, vectors: Tensor, others: Tensor, weight: Tensor) -> _Groups:
    """Groups of pairs [C] by `owner` [C], an index of `vectors`; `others` [C, D] and `weight` [C] are of the pairs."""
    number, index, size = torch.unique(owner, return_inverse=True, return_counts=True)
    total = torch.zeros(len(number), device=weight.device).index_add_(0, index, weight)
    summed = torch.zeros(len(number), others.shape[1], device=weight.device)
    return _Groups(vectors[number], number, size, total, summed.index_add_(0, index, weight[:, None] * others))


def _at_once(groups: _Groups, k: int, cells: int) -> int:
    return max(1, cells // max(len(groups.number), (k + 1) * groups.others.shape[1]))


def _nearest(queries: Tensor, groups: _Groups, own: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The groups nearest to queries [b, D], except their `own` number [b]: similarities and places, [b, <= k + 1].

    One more than k, because a pair of one of them may be left out.
    """
    similarity = (queries @ groups.vectors.T).masked_fill_(groups.number == own[:, None], -torch.inf)
    found = similarity.topk(min(k + 1, len(groups.number)), dim=1)
    return found.values, found.indices


def _shared(similarity: Tensor, size: Tensor, k: int) -> Tensor:
    """The weight of a pair of each group [b, K]: exp(-tau1 d), times its part of the k places that are left."""
    left = (k - size.cumsum(1) + size).clamp(min=0)
    return torch.exp(-TAU1 * (1 - similarity)) * (left.minimum(size) / size.clamp(min=1))


def _among_images(images: Tensor, groups: _Groups, k: int, cells: int) -> tuple[Tensor, Tensor]:
    """k s_n of an image and caption y is level - y . slope: [P] and [P, D]."""
    level, slope = images.new_empty(len(images)), torch.empty_like(images)
    for now in torch.arange(len(images)).split(_at_once(groups, k, cells)):
        similarity, place = _nearest(images[now], groups, now.to(images.device), k)
        counts = _shared(similarity, groups.size[place], k)
        level[now] = (counts * groups.weight[place]).sum(1)
        slope[now] = torch.einsum("bk,bkd->bd", counts, groups.others[place])
    return level, slope


def _among_texts(x: Tensor, groups: _Groups, nearest: tuple[Tensor, Tensor], replaced: Tensor, k: int) -> Tensor:
    """s_m [b] of images `x` [b, D], whose captions have the `nearest` groups.

    A pair of the texts `replaced` [b] (-1: none) is left out. It is one of the image x itself: it would add
    d(x, x) = 0, and must not take a place.
    """
    similarity, place = nearest
    size = groups.size[place] - (groups.number[place] == replaced[:, None]).long()
    far = groups.weight[place] - torch.einsum("bd,bkd->bk", x, groups.others[place])
    return (_shared(similarity, size, k) * far).sum(1) / k


def has_neighbours(
    image: np.ndarray, text: np.ndarray, compared: np.ndarray | None = None, k: int = NEIGHBOURS
) -> bool:
    """Whether every pair has k others to compare with, of other photos and of other texts; see `lemon_scores`."""
    compared = np.arange(len(image)) if compared is None else compared
    return len(compared) - _most_alike(image, text, compared) - 1 >= k


def _most_alike(image: np.ndarray, text: np.ndarray, compared: np.ndarray) -> int:
    return max(int(np.bincount(index[compared]).max(initial=0)) for index in (image, text))


def _check(image: np.ndarray, text: np.ndarray, compared: np.ndarray, k: int) -> None:
    if k < 1 or not has_neighbours(image, text, compared, k):
        raise ValueError(
            f"LEMoN compares a pair with the {k} nearest of other photos and other texts, and of {len(compared)} pairs "
            f"{_most_alike(image, text, compared)} share one: choose a smaller k, or give it more data"
        )
