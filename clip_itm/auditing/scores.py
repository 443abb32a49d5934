"""How suspicious each pair is, by scores of several kinds, next to made mismatches that are scored the same way.

Every score takes unit vectors (or other embeddings) of the images [P, ...] and of the caption of every pair [N, ...],
and gives its value for the N pairs and for the N mismatches (`made_mismatches`); larger is more suspicious. A mismatch
is scored as if it were in the place of its pair. `calibration/scores.py` has the score of crossfit, `lemon.py` LEMoN.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from clip_itm.calibration.scores import Score
from clip_itm.calibration.share import rank_score
from clip_itm.evaluation import ranking
from clip_itm.methods.pair_losses import seeded_batches
from clip_itm.precision import exact_float32

PAIRS_AT_ONCE = 64  # a similarity that is no dot product compares all images of a block with all its captions
BATCH = 256  # pairs in a batch of the contrastive loss


class Scores(NamedTuple):
    """`pairs` and `made`, float64 [N]: one score of the pairs and of their mismatches; NaN where it is not defined."""

    pairs: np.ndarray
    made: np.ndarray


def clip_scores(images: Tensor, texts: Tensor, image: np.ndarray, mismatch: np.ndarray, score: Score) -> Scores:
    """The negative CLIP score: minus the similarity of image and caption.

    images: [P, ...] embeddings. texts: [N, ...], of the caption of every pair. image: int64 [N], the image of every
    pair. mismatch: int64 [N], the pair whose caption its image is given. score: similarities [p, b], rows are images.
    """
    return Scores(*(-_own(images, texts, image, captions, score) for captions in (np.arange(len(image)), mismatch)))


def _own(images: Tensor, texts: Tensor, image: np.ndarray, captions: np.ndarray, score: Score) -> np.ndarray:
    """The similarity of every pair with the caption of pair `captions` [N]: float64 [N]."""
    parts = []
    with torch.inference_mode(), exact_float32(images.device):
        for now in np.split(np.arange(len(image)), range(PAIRS_AT_ONCE, len(image), PAIRS_AT_ONCE)):
            rows, columns = (torch.from_numpy(index[now]).to(images.device) for index in (image, captions))
            parts.append(ranking.score(score, images[rows], texts[columns]).diagonal().double().cpu().numpy())
    return np.concatenate(parts)


def rank_scores(
    images: Tensor,
    texts: Tensor,
    image: np.ndarray,
    mismatch: np.ndarray,
    score: Score,
    p: np.ndarray,
    p0: np.ndarray,
    candidates: np.ndarray | None = None,
    cells: int = 2**24,
) -> Scores:
    """The mean rank in both directions (image among images, caption among captions), as normal quantiles.

    images, texts, image, mismatch, score: see `clip_scores`. p, p0: [N], the ranks among images (`FoldScores`).
    candidates: int64 [C], ascending, the captions to compare with; if None, all. cells: similarities held at once.

    With captions j of other images (the caption of a mismatch itself left out):

        q(i, c) = mean over j of [S(i, j) > S(i, c)] + 1/2 [S(i, j) = S(i, c)]
        rank    = 1/2 [Phi^-1(p) + Phi^-1(q)], each kept within 1/2n .. 1 - 1/2n of its n rivals
    """
    q, q0 = caption_ranks(images, texts, image, mismatch, score, candidates, cells)
    rivals = len(texts) if candidates is None else len(candidates)
    both = ((rank_score(a, len(images)) + rank_score(b, rivals)) / 2 for a, b in ((p, q), (p0, q0)))
    return Scores(*both)


def caption_ranks(
    images: Tensor,
    texts: Tensor,
    image: np.ndarray,
    mismatch: np.ndarray,
    score: Score,
    candidates: np.ndarray | None = None,
    cells: int = 2**24,
) -> tuple[np.ndarray, np.ndarray]:
    """`q` of the pairs and of the mismatches, float64 [N]; see `rank_scores`. 1/2 where no caption is a rival."""
    count = len(image)
    chosen = np.arange(count) if candidates is None else candidates
    found = np.empty((2, count))
    order = np.argsort(image, kind="stable")
    block = max(1, cells // (len(chosen) + 2))
    scratch = torch.empty(block * len(chosen), device=images.device)
    with torch.inference_mode(), exact_float32(images.device):
        for now in np.split(order, range(block, count, block)):
            rows, row = np.unique(image[now], return_inverse=True)
            ends = np.unique(np.concatenate([chosen, now, mismatch[now]]))  # scored in one product, so that equals tie
            rival = torch.from_numpy(np.isin(ends, chosen, assume_unique=True)).to(images.device)
            scores = ranking.score(score, images[torch.from_numpy(rows)], texts[torch.from_numpy(ends)])
            row = torch.from_numpy(row).to(scores.device)
            columns = scores[:, rival] if not bool(rival.all()) else scores
            sibling = torch.from_numpy(image[chosen][None] == rows[:, None]).to(scores.device)
            columns = columns.masked_fill(sibling, -torch.inf)  # below any pair: no rival
            others = (~sibling).sum(1)[row].cpu().numpy()
            for kind, captions in enumerate((now, mismatch[now])):
                place = torch.from_numpy(np.searchsorted(ends, captions)).to(scores.device)
                own = scores[row, place][:, None]
                greater, at_least = ranking.count_rivals(columns[row], own, 1, scratch)
                itself = np.isin(captions, chosen) & (image[captions] != image[now])
                rivals = others - itself
                ahead = (greater + at_least).cpu().numpy() - itself
                found[kind, now] = np.where(rivals > 0, ahead / (2 * np.maximum(rivals, 1)), 0.5)
    return found[0], found[1]


def sibling_scores(vectors: np.ndarray, image: np.ndarray, mismatch: np.ndarray) -> Scores:
    """The mean distance (1 - cosine) of a caption to the other captions of its image; NaN where there is no other.

    vectors: [N, D], unit vectors of the captions. image, mismatch: see `clip_scores`.
    """
    images, index, counts = np.unique(image, return_inverse=True, return_counts=True)
    total = np.zeros((len(images), vectors.shape[1]))
    np.add.at(total, index, vectors)
    others = np.where(counts > 1, counts - 1, np.nan)[index]
    mean = (total[index] - vectors) / others[:, None]
    return Scores(*(1 - np.einsum("nd,nd->n", mean, vectors[captions]) for captions in (slice(None), mismatch)))


def loss_scores(
    images: Tensor,
    texts: Tensor,
    image: np.ndarray,
    mismatch: np.ndarray,
    scale: float,
    score: Callable[[Tensor, Tensor], Tensor],
    seed: int = 0,
    batch_size: int = BATCH,
) -> Scores:
    """The symmetric contrastive loss of every pair in a batch of others, as in `pair_losses`.

    images, texts, image, mismatch, score: see `clip_scores`. scale: factor of similarities. seed: of the batches.
    The loss of a mismatch is that at its pair's place in the batch, with the caption that the image is given instead.
    """
    found = np.empty((2, len(image)))
    with torch.inference_mode(), exact_float32(images.device):
        for batch, known in seeded_batches(len(image), batch_size, seed):
            now, other = (torch.from_numpy(index).to(images.device) for index in (image[batch], mismatch[batch]))
            rows, own = images[now], torch.from_numpy(batch).to(images.device)
            pairs, made = (scale * ranking.score(score, rows, texts[columns]).double() for columns in (own, other))
            among_captions = pairs.clone()
            for kind, logits in enumerate((pairs, made)):
                among_captions.diagonal().copy_(logits.diagonal())
                losses = (among_captions.logsumexp(1) + logits.logsumexp(0)) / 2 - logits.diagonal()
                found[kind, batch[known:]] = losses[known:].cpu().numpy()
    return Scores(*found)
