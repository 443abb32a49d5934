"""Ranks of the right answers among all images and all captions, in memory bounded by a block of scores.

A rank is counted rather than sorted: 1 + the number of candidates with a strictly greater score. The score of the right
answer is read from the block that holds its rivals, because the same dot product in a block of another shape may be
rounded differently, and a different last bit turns equal scores into a lost (or won) rank.

Dot products are computed once for both directions, in blocks of images. A caption meets its rivals in several of them,
so rivals within float32 rounding of its image's score cannot be told from it there; captions with such rivals are
scored again in one block with all of them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clip_itm.precision import exact_float32
from clip_itm.visible import counted

Scorer = Callable[[Tensor, Tensor], Tensor]
"""`similarity(images [b, ...], texts [c, ...]) -> [b, c]`: one row per image."""

BLOCK_BYTES = 64 * 2**20  # of float32 scores; counting needs as much again
LARGEST_EXACT_COUNT = 2**24  # float32 counts by ones up to here


@dataclass(frozen=True, eq=False)
class Ranks:
    """1-based ranks in both retrieval directions, int64 arrays, of Q images that have captions and Nt captions.

    `image_to_text` [Q]: 1 + the number of captions that score strictly higher than the best of the image's own.
    `text_to_image` [Nt]: 1 + the number of images that score strictly higher than the caption's own.
    `*_pessimistic`: the same with every tied rival counted as ahead; other captions of the image are not rivals.
    `query_image` [Q]: image index of each entry of `image_to_text`, ascending.
    `caption_image` [Nt]: image index of each caption.
    """

    image_to_text: np.ndarray
    image_to_text_pessimistic: np.ndarray
    text_to_image: np.ndarray
    text_to_image_pessimistic: np.ndarray
    query_image: np.ndarray
    caption_image: np.ndarray


def compute_ranks(
    images: Tensor,
    texts: Tensor,
    caption_image: np.ndarray | Tensor,
    similarity: Scorer | None = None,
    block_size: int | None = None,
    device: str | torch.device | None = None,
) -> Ranks:
    """Ranks of every image's best caption and of every caption's image.

    images: [Ni, ...], texts: [Nt, ...] embeddings (for the default similarity [N, D], of any floating type).
    caption_image: int [Nt], the image index of each caption, in any order; an image without captions is a rival of the
        others but not a query.
    similarity: see `Scorer`; by default the dot product in float32 (normalise the embeddings first for cosines).
    block_size: queries (images, then captions) scored at once against all candidates; by default as many as fit into
        64 MiB of float32 scores. A block that holds all images is scored once and serves both directions, and so does
        every block of dot products (of a similarity with `is_dot_product`), except for captions with near rivals.
    device: where the scores are computed (default: where the embeddings are).

    Autocast and reduced-precision matrix products are off inside. Raises ValueError for empty or mismatched input,
    image indices out of range, and scores that are NaN.

    Example:
        >>> images = torch.eye(2)
        >>> texts = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])  # the third is a wrong caption of image 1
        >>> compute_ranks(images, texts, torch.tensor([0, 1, 1])).text_to_image
        array([1, 1, 2])
    """
    owner = check_owners(caption_image, len(images), len(texts))
    images, texts, similarity = prepare_scores(images, texts, similarity, block_size, device)
    owner = owner.to(images.device)
    num_images, num_texts = len(images), len(texts)
    images_at_once = min(num_images, block_size or max(1, BLOCK_BYTES // (4 * num_texts)))
    captions_at_once = min(num_texts, block_size or max(1, BLOCK_BYTES // (4 * num_images)))
    one_block = images_at_once == num_images
    cells = images_at_once * num_texts if one_block else max(images_at_once * num_texts, captions_at_once * num_images)
    scratch = torch.empty(cells, dtype=torch.float32, device=owner.device)

    by_image = torch.argsort(owner, stable=True)
    first_caption = torch.searchsorted(owner[by_image], torch.arange(num_images + 1, device=owner.device)).tolist()
    image_ranks = torch.zeros(2, num_images, dtype=torch.int64, device=owner.device)
    text_ranks = torch.zeros(2, num_texts, dtype=torch.int64, device=owner.device)

    with torch.inference_mode(), exact_float32(images.device):
        again = torch.arange(0 if one_block else num_texts, device=owner.device)  # captions without ranks
        near = Near(images, texts, owner) if isinstance(similarity, DotProduct) and not one_block else None
        for start in range(0, num_images, images_at_once):
            block = slice(start, start + images_at_once)
            own = by_image[first_caption[start] : first_caption[min(block.stop, num_images)]]
            scores = score(similarity, images[block], texts)
            image_ranks[:, block] = rank_best(scores, owner[own] - start, own, scratch)
            if one_block:
                text_ranks[:] = rank_images(scores, owner, scratch)
            if near is not None:
                near.count(scores, scratch)
            del scores  # free them before the next block is made
        if near is not None:
            text_ranks[:] = 1 + near.above
            again = near.unsure()
        for captions in again.split(captions_at_once) if len(again) else ():
            scores = score(similarity, images, texts[captions])
            text_ranks[:, captions] = rank_images(scores, owner[captions], scratch)

    query = torch.unique(owner)
    best, worst = image_ranks[:, query].cpu().numpy()
    text_best, text_worst = text_ranks.cpu().numpy()
    return Ranks(best, worst, text_best, text_worst, query.cpu().numpy(), owner.cpu().numpy())


def rank_best(scores: Tensor, row: Tensor, column: Tensor, scratch: Tensor) -> Tensor:
    """Ranks [2, b] (optimistic, pessimistic) of each query's best right answer; scores [b, C] against all candidates.

    `column[n]` is a right answer of the query in row `row[n]`. The rank of a row without right answers is meaningless.
    """
    own = scores[row, column]
    best = scores.new_full((len(scores),), -torch.inf).scatter_reduce_(0, row, own, "amax")
    greater, at_least = count_rivals(scores, best[:, None], 1, scratch)
    own_at_best = torch.zeros_like(at_least).index_add_(0, row, (own == best[row]).long())
    return torch.stack([1 + greater, 1 + at_least - own_at_best])


def rank_images(scores: Tensor, owner: Tensor, scratch: Tensor) -> Tensor:
    """Ranks [2, c] (optimistic, pessimistic) of each caption's image `owner` [c]; scores [Ni, c] against all images."""
    own = scores.gather(0, owner[None])
    greater, at_least = count_rivals(scores, own, 0, scratch)
    return torch.stack([1 + greater, at_least])


def count_rivals(scores: Tensor, threshold: Tensor, dim: int, scratch: Tensor) -> tuple[Tensor, Tensor]:
    """How many scores [b, c] are greater than, and how many at least, the threshold ([b, 1] or [1, c]), along `dim`."""
    return count_where(torch.gt, scores, threshold, dim, scratch), count_where(
        torch.ge, scores, threshold, dim, scratch
    )


def count_where(compare: Callable, scores: Tensor, threshold: Tensor, dim: int, scratch: Tensor) -> Tensor:
    """How many scores [b, c] satisfy `compare` with the threshold, along `dim`: int64."""
    # Zeros and ones in float32, added in float32: ten times faster on a CPU than the sum of a boolean mask. The memory
    # is reused, because fresh pages cost as much as the counting, and laid out like the scores.
    mask = scratch[: scores.numel()]
    mask = mask.view(scores.T.shape).T if scores.T.is_contiguous() else mask.view(scores.shape)
    total = torch.float32 if scores.shape[dim] <= LARGEST_EXACT_COUNT else torch.float64
    return compare(scores, threshold, out=mask).sum(dim, dtype=total).long()


class Near:
    """Images that score above each caption's own, counted over blocks that may round its score differently.

    Two sums of the same D products, in any order, differ by at most 2 gamma |x| |y| with gamma = D u / (1 - D u), u the
    unit roundoff (Higham, Accuracy and Stability of Numerical Algorithms, 3.1). Two scores that are more
    than 4 gamma |x| |y| apart in one product are in the same order in every other.
    """

    def __init__(self, images: Tensor, texts: Tensor, owner: Tensor):
        own = torch.cat([(images[o] * t).sum(1) for o, t in zip(owner.split(4096), texts.split(4096), strict=True)])
        unit = torch.finfo(own.dtype).eps / 2
        # one more for each rounding of the bounds themselves, and of the norms
        reach = 4 * (images.shape[1] + 8) * unit * images.norm(dim=1).max() * texts.norm(dim=1)
        self.low, self.high = (own - reach)[None], (own + reach)[None]
        self.above = torch.zeros(len(texts), dtype=torch.int64, device=own.device)
        self.not_below = torch.zeros_like(self.above)

    def count(self, scores: Tensor, scratch: Tensor) -> None:
        """Add the images of a block of scores [b, Nt]."""
        self.above += count_where(torch.gt, scores, self.high, 0, scratch)
        self.not_below += count_where(torch.ge, scores, self.low, 0, scratch)

    def unsure(self) -> Tensor:
        """Captions int64 [n] that have more than their own image near its score; NaN and infinity are near anything."""
        return (self.not_below - self.above != 1).nonzero()[:, 0]


def prepare_scores(
    images: Tensor,
    texts: Tensor,
    similarity: Scorer | None,
    block_size: int | None,
    device: str | torch.device | None,
) -> tuple[Tensor, Tensor, Scorer]:
    """Images and texts on `device`, and the similarity that compares them; see `compute_ranks`."""
    if block_size is not None and block_size < 1:
        raise ValueError(f"block_size is {block_size}; expected a positive number of queries, or None")
    images, texts = (x if device is None else x.to(device) for x in (images, texts))
    if similarity is None or getattr(similarity, "is_dot_product", False):
        return *prepare_dot_product(images, texts), DotProduct()
    return images, texts, similarity


def score(similarity: Scorer, images: Tensor, texts: Tensor) -> Tensor:
    """A block of scores [b, c]; ValueError if the similarity returns another shape or type, or NaN."""
    scores = similarity(images, texts)
    if scores.shape != (len(images), len(texts)) or not scores.is_floating_point():
        raise ValueError(
            f"similarity returned {scores.dtype} {tuple(scores.shape)} for {len(images)} photos and {len(texts)} "
            f"captions; expected floating scores ({len(images)}, {len(texts)}), rows are photos"
        )
    # One fast pass: the sum is NaN if any score is (and if there are both +inf and -inf, hence the second look).
    if scores.sum().isnan() and (count := int(scores.isnan().sum())):
        raise ValueError(
            f"{count} of {scores.numel()} similarities in a block are NaN: check the embeddings for NaN and infinity"
        )
    return scores


class DotProduct:
    """`images @ texts.T`, [b, D], [c, D] -> [b, c], in memory that the next call reuses.

    Fresh pages would make the products of blocks a third slower on a CPU, and so would the larger matrix on the left.
    """

    def __init__(self):
        self.buffer = torch.empty(0)

    def __call__(self, images: Tensor, texts: Tensor) -> Tensor:
        few, many = (images, texts) if len(images) <= len(texts) else (texts, images)
        cells = len(few) * len(many)
        if self.buffer.numel() < cells:
            self.buffer = few.new_empty(cells)
        scores = torch.mm(few, many.T, out=self.buffer[:cells].view(len(few), len(many)))
        return scores if few is images else scores.T


def prepare_dot_product(images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
    """Both as [N, D] of one type, float32 or wider: scores in half precision tie, which moves R@1 by half a point.

    Raises ValueError unless both are matrices of one width.
    """
    if images.ndim != 2 or texts.ndim != 2 or images.shape[1] != texts.shape[1]:
        raise ValueError(
            f"expected photo embeddings [Ni, D] and caption embeddings [Nt, D], got {tuple(images.shape)} and "
            f"{tuple(texts.shape)}; pass `similarity` for embeddings of another kind"
        )
    dtype = torch.promote_types(torch.promote_types(images.dtype, texts.dtype), torch.float32)
    return images.to(dtype), texts.to(dtype)


def check_owners(caption_image: np.ndarray | Tensor, num_images: int, num_texts: int) -> Tensor:
    """`caption_image` as an int64 tensor [Nt] on the CPU; ValueError unless it has a valid index for each caption."""
    owner = torch.as_tensor(caption_image)
    if not num_images or not num_texts:
        raise ValueError(
            f"nothing to rank: {num_images} photos and {num_texts} captions; expected at least one of each"
        )
    if owner.is_floating_point() or owner.is_complex() or owner.dtype == torch.bool or owner.shape != (num_texts,):
        raise ValueError(
            f"caption_image has shape {tuple(owner.shape)} and type {owner.dtype}; expected one photo number (integer) "
            f"for each of the {num_texts} captions"
        )
    outside = ((owner < 0) | (owner >= num_images)).nonzero()
    if len(outside):
        first = int(outside[0])
        raise ValueError(
            f"caption_image[{first}] is {int(owner[first])}, but photo numbers go from 0 to {num_images - 1} "
            f"({counted(len(outside), 'caption is', 'captions are')} out of range)"
        )
    return owner.to("cpu", torch.int64)
