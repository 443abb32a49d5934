"""How suspicious each pair is to a model that has not seen it, next to made mismatches.

There is no need to guess what a wrong caption looks like: pair every image with the caption of another one, and score
these pairs like the others.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clip_itm.calibration.equal_captions import EqualCaptions
from clip_itm.evaluation import ranking
from clip_itm.precision import exact_float32
from clip_itm.visible import counted

Score = Callable[[Tensor, Tensor], Tensor]
BLOCK = 256  # captions that are scored against all images at once


@dataclass(frozen=True, eq=False)
class FoldScores:
    """Pairs of one fold, judged by one model, and for each of them a mismatch: its image with another's caption.

    `pairs` int64 [n]: their indices in the training split. `image` int64 [n]: their images, 0 to `images` - 1.
    `mismatch` int64 [n]: the pair (of the fold) whose caption the image of pair k is given.
    `z`, `z0` float64 [n]: the score of the pair and of its mismatch; larger is more suspicious.
    `p`, `p0` float64 [n]: the share of the other images that fit the caption at least as well, ties half. Uniform if a
    caption has nothing to do with the image, whatever caption it is.
    `texts` float32 [n, D]: unit vectors of the captions, by which captions of one image are compared; or None.
    `fits` bool [n]: the mismatch is equal to a caption of the image after all; None: equal captions do not count.
    """

    pairs: np.ndarray
    z: np.ndarray
    z0: np.ndarray
    p: np.ndarray
    p0: np.ndarray
    mismatch: np.ndarray
    image: np.ndarray
    images: int
    texts: np.ndarray | None = None
    fits: np.ndarray | None = None

    @property
    def is_made(self) -> np.ndarray:
        """bool [n]: False where the mismatch is a caption of the same image after all (`made_mismatches`)."""
        is_other = self.image[self.mismatch] != self.image
        return is_other if self.fits is None else is_other & ~self.fits


def made_mismatches(pair_image: np.ndarray, rng: np.random.Generator, equal: EqualCaptions | None = None) -> np.ndarray:
    """A permutation of the pairs, int64 [n]: the image of pair k is given the caption of pair `mismatch[k]`.

    Never one of the same image (`pair_image` int64 [n]), unless one image has more than half of the pairs: then as
    rarely as possible. With `equal` (of the same pairs), never one that is equal to a caption of the image either,
    unless no other can be found. Raises ValueError if all pairs have the same image, or equal captions.

    Example:
        >>> made_mismatches(np.array([0, 1]), np.random.default_rng(0))
        array([1, 0])
    """
    pair_image = np.asarray(pair_image)
    _, image, counts = np.unique(pair_image, return_inverse=True, return_counts=True)
    if len(counts) < 2:
        raise ValueError(
            f"{counted(len(image), 'pair')} of {counted(len(counts), 'image')}: mismatches are made of the captions of "
            "other images, so that at least two images have to be judged together"
        )
    if equal is not None:
        return equal.keep_apart(rng.permutation(len(image)), rng)
    most = int(counts.max())
    if 2 * most <= len(image):
        mismatch = rng.permutation(len(image))
        for _ in range(100):
            same = np.flatnonzero(image[mismatch] == image)
            if not len(same):
                return mismatch
            places = np.union1d(same, rng.integers(len(image), size=len(same)))  # shuffled again with a few others
            mismatch[places] = mismatch[rng.permutation(places)]
    # Rare: one image has about half of the pairs. Sorted by image, a shift by its number of pairs leaves every image.
    order = np.lexsort((rng.random(len(image)), rng.random(len(counts))[image]))
    mismatch = np.empty(len(image), dtype=np.int64)
    mismatch[order] = np.roll(order, -most)
    return mismatch


def score_pairs(
    images: Tensor,
    texts: Tensor,
    pair_image: np.ndarray,
    mismatch: np.ndarray,
    scale: float,
    score: Score,
    block: int,
    candidates: int | None = None,
    rng: np.random.Generator | None = None,
    equal: EqualCaptions | None = None,
) -> FoldScores:
    """Scores of pairs and of made mismatches; `pairs` of the result are 0 to n - 1, for the caller to replace.

    images: [P, ...] embeddings.
    texts: [n, ...] embeddings, of the caption of every pair.
    pair_image: int64 [n], the row of `images` of every pair.
    mismatch: int64 [n], from `made_mismatches`.
    scale: positive factor of the similarities, such as `exp(logit_scale)`.
    score: similarities [p, b] of images [p, ...] and captions [b, ...], rows are images.
    block: captions compared at once. Memory: about five float32 matrices [P, block], never one [P, n].
    candidates: compare with only this many images and captions, drawn by `rng`, if n * P similarities are too many;
        the cost is then n * (candidates + 2 * block) + P * candidates. If None, with all of them, in one pass.
    equal: of the same pairs; other images with an equal caption are then left out wherever a caption is compared with
        images, and captions that are equal to one of an image wherever it is compared with captions.

    With S = scale * similarity of image i and caption c, P images and C captions:

        z(i, c) = 1/2 [log mean_photos exp S(., c)] + 1/2 [log mean_captions exp S(i, .)] - S(i, c)
        p(i, c) = mean over images j != i of [S(j, c) > S(i, c)] + 1/2 [S(j, c) = S(i, c)]

    Raises ValueError for similarities that are not finite, and for fewer than two images.
    """
    image, moved = torch.as_tensor(pair_image), torch.as_tensor(mismatch)
    count, total = len(texts), len(images)
    _check(image, moved, count, total, block, candidates)
    some_images, some_texts = _candidates(total, candidates, rng), _candidates(count, candidates, rng)

    def compare(images: Tensor, texts: Tensor) -> Tensor:
        return scale * ranking.score(score, images, texts)

    with torch.inference_mode(), exact_float32(texts.device):
        found = _over_texts(compare, images, texts, image, moved, block, some_images, equal)
        similarity, similarity0, p, p0, of_text, of_image, out_of_text, out_of_image = found
        if some_images is not None or some_texts is not None:
            chosen = torch.arange(count) if some_texts is None else some_texts
            of_image, out_of_image = _over_images(compare, images, texts, image, chosen.split(block), equal)

    seen_images = torch.ones(total).long() if some_images is None else torch.bincount(some_images, minlength=total)
    own_texts = torch.bincount(image, minlength=total)
    seen_texts = own_texts if some_texts is None else torch.bincount(image[some_texts], minlength=total)
    others = (count if some_texts is None else len(some_texts)) - seen_texts - out_of_image
    own = np.full(total, -np.inf)
    np.logaddexp.at(own, image.numpy(), similarity.numpy())
    of_image = _log_mean(of_image, others, torch.from_numpy(own), own_texts, count)
    rivals = (seen_images.sum() - seen_images)[image] - out_of_text
    of_text = _log_mean(of_text, rivals, similarity, torch.ones_like(image), total)
    z = (of_text + of_image[image]) / 2 - similarity
    z0 = (of_text[moved] + of_image[image]) / 2 - similarity0
    if not (z.isfinite().all() and z0.isfinite().all()):
        raise ValueError("some similarities are infinite, or too large for the scale: check embeddings and scale")
    parts = (z.numpy(), z0.numpy(), p.numpy(), p0.numpy(), moved.numpy(), image.numpy())
    fits = None if equal is None else equal.fits(np.arange(count), moved.numpy())
    return FoldScores(np.arange(count), *parts, total, fits=fits)


def _over_texts(
    compare: Score,
    images: Tensor,
    texts: Tensor,
    image: Tensor,
    moved: Tensor,
    block: int,
    some: Tensor | None,
    equal: EqualCaptions | None,
) -> tuple[Tensor, ...]:
    """The results of one pass over the captions, float64 on the CPU.

    Similarities of pairs and of mismatches [n], ranks of both [n], and log sums of exp, without those of right pairs,
    over images for every caption [n], and over captions for every image [P]; then how many images were left out for
    every caption [n], and captions for every image [P], because of `equal`. `some` int64 [Q]: the images to compare
    with, to which [P] then shrinks; if None, all.
    """
    borrower = torch.argsort(moved)  # the pair whose image is given this caption
    rows = len(images) if some is None else len(some)
    is_row = torch.ones(len(images), dtype=torch.bool)
    if some is not None:
        is_row = torch.zeros_like(is_row).index_fill_(0, some, True)
    similarity, similarity0, p, p0, of_text = torch.empty(5, len(texts), dtype=torch.float64)
    out_of_text, out_of_image = torch.zeros(len(texts), dtype=torch.int64), torch.zeros(rows, dtype=torch.int64)
    of_image = torch.full((rows,), -torch.inf, dtype=torch.float64)
    scratch = torch.empty(rows * block, device=texts.device)
    for now in torch.arange(len(texts)).split(block):
        lender = borrower[now]
        own, other = image[now], image[lender]
        of_block = slice(int(now[0]), int(now[-1]) + 1)
        column = torch.arange(len(now), device=texts.device)
        if some is None:
            scores = compare(images, texts[of_block])
            pair, made = scores[own.to(scores.device), column], scores[other.to(scores.device), column]
        else:
            compared = torch.cat([some, own, other]).to(images.device)
            scores, pairs = compare(images[compared], texts[of_block]).split([rows, 2 * len(now)])
            pair, made = pairs[column, column], pairs[len(now) + column, column]
        similarity[of_block], similarity0[lender] = pair.double().cpu(), made.double().cpu()
        out, lost = _leave_out(scores, now, some, equal)
        out_of_text[of_block] = out
        out_of_image += lost
        p[of_block] = _rank(scores, pair, is_row[own], out, scratch)
        p0[lender] = _rank(scores, made, is_row[other], out, scratch)
        scores = _without_own(scores, own, some)
        of_text[of_block] = torch.logsumexp(scores, dim=0).double().cpu()
        of_image = torch.logaddexp(of_image, torch.logsumexp(scores, dim=1).double().cpu())
    return similarity, similarity0, p, p0, of_text, of_image, out_of_text, out_of_image


def _over_images(
    compare: Score,
    images: Tensor,
    texts: Tensor,
    image: Tensor,
    chosen: Sequence[Tensor],
    equal: EqualCaptions | None,
) -> tuple[Tensor, Tensor]:
    """Log sums of exp over captions for every image [P], without its own; `chosen`: the captions, block by block.

    Also how many captions were left out for every image [P], because of `equal`.
    """
    of_image = torch.full((len(images),), -torch.inf, dtype=torch.float64)
    out_of_image = torch.zeros(len(images), dtype=torch.int64)
    for now in chosen:
        scores = compare(images, texts[now.to(texts.device)])
        out_of_image += _leave_out(scores, now, None, equal)[1]
        scores = _without_own(scores, image[now], None)
        of_image = torch.logaddexp(of_image, torch.logsumexp(scores, dim=1).double().cpu())
    return of_image, out_of_image


def _leave_out(scores: Tensor, now: Tensor, rows: Tensor | None, equal: EqualCaptions | None) -> tuple[Tensor, Tensor]:
    """Write minus infinity into `scores` [Q, b] where captions `now` [b] meet other images with an equal caption.

    Returns how many cells of every caption [b] and of every row [Q] these are. `rows` [Q]: which images.
    """
    if equal is None:
        return torch.zeros(len(now), dtype=torch.int64), torch.zeros(len(scores), dtype=torch.int64)
    row, column = equal.other_images(now.numpy())
    if rows is not None:
        row, is_there = _place_of(row, rows)
        row, column = row[is_there], column[is_there]
    scores.index_put_((row.to(scores.device), column.to(scores.device)), scores.new_tensor(-torch.inf))
    return torch.bincount(column, minlength=len(now)), torch.bincount(row, minlength=len(scores))


def _place_of(images: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The places of `images` [m] in the ascending `rows` [Q], and whether they are there: [m] each."""
    place = torch.searchsorted(rows, images).clamp(max=len(rows) - 1)
    return place, rows[place] == images


def _candidates(total: int, number: int | None, rng: np.random.Generator | None) -> Tensor | None:
    """A random choice of `number` of `total` things, ascending; None for all of them."""
    if number is None or number >= total:
        return None
    if rng is None:
        raise ValueError("candidates are drawn by chance: pass rng, a numpy Generator")
    return torch.from_numpy(np.sort(rng.choice(total, number, replace=False)))


def _rank(scores: Tensor, threshold: Tensor, is_row: Tensor, out: Tensor, scratch: Tensor) -> Tensor:
    """The share of images (rows of `scores` [Q, b], except the own one) at or above `threshold` [b], ties half.

    `is_row` bool [b]: whether the own image is one of the rows, where it ties with itself. `out` int64 [b]: how many
    rows are left out; if that is all of them, the share is a half.
    """
    greater, at_least = ranking.count_rivals(scores, threshold[None], 0, scratch)
    itself = is_row.long()
    ahead, rivals = ((greater + at_least).cpu() - itself).double(), len(scores) - itself - out
    return torch.where(rivals > 0, ahead / (2 * rivals), 0.5)


def _without_own(scores: Tensor, own: Tensor, rows: Tensor | None) -> Tensor:
    """Scores [Q, b] with minus infinity where a caption meets its own image `own` [b]; `rows` [Q]: which images."""
    column = torch.arange(len(own))
    if rows is not None:
        place, is_there = _place_of(own, rows)
        own, column = place[is_there], column[is_there]
    return scores.index_put_((own.to(scores.device), column.to(scores.device)), scores.new_tensor(-torch.inf))


def _log_mean(others: Tensor, seen: Tensor, own: Tensor, owned: Tensor, total: int) -> Tensor:
    """log of the mean of exp over `total` things: `owned` of them sum up to exp(own), `seen` others to exp(others).

    The others that were not seen count as much as those that were.
    """
    weight = (total - owned).double().log() - seen.clamp(min=1).double().log()
    return torch.logaddexp(others + weight, own) - math.log(total)


def _check(image: Tensor, moved: Tensor, count: int, total: int, block: int, candidates: int | None) -> None:
    if image.shape != (count,) or moved.shape != (count,):
        raise ValueError(
            f"expected an image and a mismatch for each of {count} captions, got {tuple(image.shape)} and "
            f"{tuple(moved.shape)}"
        )
    if total < 2:
        raise ValueError(
            f"{counted(total, 'image')}: a pair is judged among other images, so that at least two are needed"
        )
    if int(image.min()) < 0 or int(image.max()) >= total:
        raise ValueError(f"images of pairs go from {image.min()} to {image.max()}, but there are {total} images")
    if not torch.equal(moved.sort().values, torch.arange(count)):
        raise ValueError("mismatch is no permutation of the pairs; expected one of `made_mismatches`")
    if block < 1 or (candidates is not None and candidates < 2):
        raise ValueError(f"expected block >= 1 and candidates >= 2, got {block} and {candidates}")
