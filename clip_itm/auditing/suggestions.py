"""What would be right for a suspect pair: captions of the data that fit its photo, and photos that fit its caption.

How well a photo i and a caption c fit, from kept embeddings, with s the similarity and t_i the mean vector of the
photo's trusted captions (zero if there are none):

    fit(i, c) = s(i, c) - hub(i) / 2 - hub(c) / 2 + 2 <t_i, c>

`hub` is the mean of the ten largest similarities to a sample of the other side: what is near to everything is no
answer to anything. There is always a best answer, so each also says how far it stands out: its fit above the mean of
the best ten. The same search is made for photos whose captions are all trusted, with these captions taken away: what
stands out there does so by chance. `p` is the share of such searches in which the first answer stands out as far; if it
is above .05 nothing is proposed, though the list can be looked at.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clip_itm.auditing.neighbours import Again, Block, dot, slices, top
from clip_itm.evaluation.ranking import BLOCK_BYTES, Scorer, check_owners, prepare_scores, score
from clip_itm.precision import exact_float32

CERTAIN = 0.05  # at most this share of searches without a right answer proposes something
SIBLINGS = 2.0  # weight of the other captions of a photo: on Flickr8k with 40 % shuffled, right first 16 % -> 40 %
HUB = 10  # largest similarities
STANDS_OUT = 10  # best answers: one stands out by its fit above their mean
HUB_SAMPLE = 2048
MADE = 1000  # searches without a right answer, at most
FEWEST_MADE = 50  # if fewer, photos with some trusted captions, whose others may be elsewhere, so that p is too large


class Suggestions(NamedTuple):
    """The best answers for S suspects, k each, best first; ties in the order of the data.

    `index` int64 [S, k]: pairs (whose caption is meant) or photos; -1 where there are fewer.
    `fit` float32 [S, k], -inf where there are fewer.
    `p` float32 [S, k]: the share of searches without a right answer whose first stands out as far; 1 where there are
    fewer.
    """

    index: np.ndarray
    fit: np.ndarray
    p: np.ndarray

    @property
    def proposed(self) -> np.ndarray:
        """bool [S, k]: fits so well that chance does as well in at most a twentieth of the searches."""
        return self.p <= CERTAIN


@dataclass(frozen=True, eq=False)
class Fits:
    """How well photos and captions of a data set fit; made by `fits_of`.

    `images` [P, ...], `texts` [N, ...]: embeddings, a row of `texts` for each pair. `image` int64 [N]: the photos of
    the pairs. `text_id` int64 [N]: equal for equal texts (`number_captions`). `trusted` bool [N]. `image_hub` [P],
    `text_hub` [N]. `own` [P, D] or None: mean vectors of trusted captions, to be compared with `text_vectors` [N, D].
    """

    images: Tensor
    texts: Tensor
    image: np.ndarray
    text_id: np.ndarray
    trusted: np.ndarray
    similarity: Scorer
    image_hub: Tensor
    text_hub: Tensor
    own: Tensor | None
    text_vectors: Tensor | None
    exact: bool

    def block(self, photos: Tensor, pairs: Tensor) -> Tensor:
        """Fits [b, c] of photos int64 [b] and of the captions of pairs int64 [c]."""
        fit = score(self.similarity, self.images[photos], self.texts[pairs])
        fit = fit - self.image_hub[photos, None] / 2 - self.text_hub[pairs] / 2
        if self.own is not None:
            fit += SIBLINGS * (self.own[photos] @ self.text_vectors[pairs].T)
        return fit

    def again(self, photos: Tensor, pairs: Tensor, fit: Tensor) -> Tensor:
        """Fits [m] of photos int64 [m] with captions of pairs int64 [m], equal for equal vectors; else `fit` as given.

        They are computed again only for dot products of unit vectors (`exact`).
        """
        if not self.exact:
            return fit
        fit = dot(self.images[photos], self.texts[pairs])
        fit = fit - self.image_hub[photos].double() / 2 - self.text_hub[pairs].double() / 2
        return fit if self.own is None else fit + SIBLINGS * dot(self.own[photos], self.text_vectors[pairs])


def fits_of(
    images: Tensor,
    texts: Tensor,
    image: np.ndarray,
    text_id: np.ndarray,
    trusted: np.ndarray,
    similarity: Scorer | None = None,
    text_vectors: Tensor | None = None,
    seed: int = 0,
) -> Fits:
    """What is compared, prepared once: hubs, and the trusted captions of each photo.

    images: [P, ...]; texts: [N, ...], a row for each pair; on the CPU, unit vectors unless `similarity` is given.
    image: int64 [N], the photo of each pair. text_id: int64 [N], equal for equal texts.
    trusted: bool [N], pairs that are probably right (such as a probability of .5 or more).
    similarity: as in `evaluation.ranking`; by default the dot product.
    text_vectors: unit vectors [N, D] by which captions are compared with each other; by default `texts` if these are
        a matrix and no similarity is given, otherwise captions of the same photo are no evidence.
    seed: of the sample in which hubs are found.

    Raises ValueError for shapes that do not fit together.
    """
    owner = check_owners(image, len(images), len(texts)).numpy()
    trusted, text_id = np.asarray(trusted), np.asarray(text_id)
    if trusted.shape != owner.shape or trusted.dtype != bool or text_id.shape != owner.shape:
        raise ValueError(
            f"trusted {trusted.dtype} {trusted.shape} and text_id {text_id.shape}; expected bool and a number for each "
            f"of {len(owner)} pairs"
        )
    exact = similarity is None
    if text_vectors is None and exact:
        text_vectors = texts.float()
    images, texts, similarity = prepare_scores(images, texts, similarity, None, None)
    with torch.inference_mode(), exact_float32(texts.device):
        hubs = _hubs(similarity, images, texts, np.random.default_rng(seed))
        own = None if text_vectors is None else _own(text_vectors, owner, trusted, len(images))
    return Fits(images, texts, owner, text_id, trusted, similarity, *hubs, own, text_vectors, exact)


def suggest_captions(fits: Fits, suspects: np.ndarray, k: int = 5, candidates: np.ndarray | None = None) -> Suggestions:
    """The `k` best captions for the photo of each suspect pair int64 [S]: `index` has the first pair with each text.

    Texts that the photo already has are left out, whether right (`standing`) or wrong; equal texts are suggested once.
    candidates: bool [N], the pairs whose captions may be suggested (default: all). If captions were shuffled,
    `~fits.trusted` finds more: what is missing here is wrongly elsewhere.
    """
    allowed = np.flatnonzero(np.ones(len(fits.image), dtype=bool) if candidates is None else candidates)
    pairs = np.sort(allowed[np.unique(fits.text_id[allowed], return_index=True)[1]])
    column = np.full(fits.text_id.max() + 1, -1)
    column[fits.text_id[pairs]] = np.arange(len(pairs))
    by_photo, starts = _by_photo(fits)

    def taken(photo: int) -> np.ndarray:
        return column[fits.text_id[by_photo[starts[photo] : starts[photo + 1]]]]

    photos, row = np.unique(fits.image[suspects], return_inverse=True)
    trusted = np.bincount(fits.image, fits.trusted, len(fits.images))
    counts = np.bincount(fits.image, minlength=len(fits.images))
    made = np.flatnonzero((trusted == counts) & (counts > 0))
    if len(made) < FEWEST_MADE:
        made = np.flatnonzero(trusted)
    found, null = _search(fits, photos, _sample(made), pairs, taken, max(k, STANDS_OUT), fits.block, fits.again)
    return _answers(found, null, row, pairs, k)


def suggest_photos(fits: Fits, suspects: np.ndarray, k: int = 5, candidates: np.ndarray | None = None) -> Suggestions:
    """The `k` best photos for the caption of each suspect pair int64 [S]: `index` has photos.

    Photos that already have this text are left out. candidates: bool [P] (default: all photos).
    """
    count = len(fits.images)
    photos = np.arange(count) if candidates is None else np.flatnonzero(candidates)
    column = np.full(count, -1)
    column[photos] = np.arange(len(photos))
    order = np.argsort(fits.text_id, kind="stable")
    starts = np.searchsorted(fits.text_id[order], np.arange(fits.text_id.max() + 2))

    def taken(pair: int) -> np.ndarray:
        same = fits.text_id[pair]
        return column[fits.image[order[starts[same] : starts[same + 1]]]]

    suspects = np.asarray(suspects)
    found, null = _search(
        fits,
        suspects,
        _sample(np.flatnonzero(fits.trusted)),
        photos,
        taken,
        max(k, STANDS_OUT),
        lambda pairs, photos: fits.block(photos, pairs).T,
        lambda pairs, photos, fit: fits.again(photos, pairs, fit),
    )
    return _answers(found, null, np.arange(len(suspects)), photos, k)


def standing(fits: Fits, suspects: np.ndarray) -> list[np.ndarray]:
    """For each suspect pair, the trusted pairs of its photo with another text, ascending: these are rightly there."""
    by_photo, starts = _by_photo(fits)
    found = []
    for pair in suspects:
        others = by_photo[starts[fits.image[pair]] : starts[fits.image[pair] + 1]]
        found.append(others[fits.trusted[others] & (fits.text_id[others] != fits.text_id[pair])])
    return found


def _search(
    fits: Fits, queries: np.ndarray, made: np.ndarray, others: np.ndarray, taken, size: int, block: Block, again: Again
) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """What `top` finds for `queries`, and how far the first stands out for each of the `made` ones."""
    found = top(queries, others, taken, size, block, again)
    null = top(made, others, taken, STANDS_OUT, block, again)[1]
    return found, np.sort(_standing_out(null)[:, 0]) if len(made) else np.empty(0)


def _answers(found, null: np.ndarray, row: np.ndarray, others: np.ndarray, k: int) -> Suggestions:
    columns, fit = found
    out = _standing_out(fit)[:, :k]
    at_least = len(null) - np.searchsorted(null, out, side="left")
    p = ((1 + at_least) / (1 + len(null))).astype(np.float32)
    columns, fit = columns[:, :k], fit[:, :k]
    nothing = columns < 0
    index = np.where(nothing, -1, others[columns] if len(others) else -1)
    return Suggestions(index[row], fit[row], np.where(nothing, np.float32(1), p)[row])


def _standing_out(fit: np.ndarray) -> np.ndarray:
    """Fits [Q, m], best first, above the mean of the first `STANDS_OUT` of a row; 0 if there are fewer than two."""
    first = fit[:, :STANDS_OUT]
    found = np.isfinite(first)
    mean = np.where(found, first, 0).sum(axis=1) / np.maximum(found.sum(axis=1), 1)
    return np.where(np.isfinite(fit), fit - mean[:, None], -np.inf)


def _hubs(similarity: Scorer, images: Tensor, texts: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """The mean of the largest similarities of each photo [P] and each caption [N] to a sample of the other side."""
    some_images = images[torch.from_numpy(np.sort(rng.permutation(len(images))[:HUB_SAMPLE]))]
    some_texts = texts[torch.from_numpy(np.sort(rng.permutation(len(texts))[:HUB_SAMPLE]))]
    size = BLOCK_BYTES // (4 * HUB_SAMPLE)

    def largest(scores: Tensor, dim: int) -> Tensor:
        return scores.topk(min(HUB, scores.shape[dim]), dim=dim).values.float().mean(dim)

    of_images = [largest(score(similarity, images[p], some_texts), 1) for p in slices(len(images), size)]
    of_texts = [largest(score(similarity, some_images, texts[p]), 0) for p in slices(len(texts), size)]
    return torch.cat(of_images), torch.cat(of_texts)


def _own(vectors: Tensor, image: np.ndarray, trusted: np.ndarray, count: int) -> Tensor:
    """Unit mean vectors [P, D] of the trusted captions of each photo, zero where there are none."""
    pairs = torch.from_numpy(np.flatnonzero(trusted))
    total = torch.zeros(count, vectors.shape[1]).index_add_(0, torch.from_numpy(image)[pairs], vectors[pairs].float())
    return F.normalize(total, dim=1)


def _by_photo(fits: Fits) -> tuple[np.ndarray, np.ndarray]:
    """Pairs in the order of their photos, and where those of each photo begin."""
    order = np.argsort(fits.image, kind="stable")
    return order, np.searchsorted(fits.image[order], np.arange(len(fits.images) + 1))


def _sample(numbers: np.ndarray) -> np.ndarray:
    if len(numbers) <= MADE:
        return numbers
    return np.sort(np.random.default_rng(0).choice(numbers, MADE, replace=False))
