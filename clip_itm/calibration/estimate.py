"""How many pairs are wrong and which: the judgement of all folds together."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clip_itm.calibration.scores import FoldScores
from clip_itm.calibration.share import BLIND, WEAK, rank_score, share_interval, spread_of_right, wrong_share
from clip_itm.calibration.siblings import has_siblings, sibling_features, with_siblings
from clip_itm.calibration.weights import clean_probability, residual, reweighted_null, standardised
from clip_itm.calibration.words import share_in_words


@dataclass(frozen=True, eq=False)
class Judgement:
    """What was found for N pairs.

    `weights` float64 [N] in [0, 1]: the probability that the pair is right.
    `weights_before_siblings` float64 [N]: the same without the evidence of its image's other captions.
    `share`, `low`, `high`: the share of wrong pairs and its 95 % interval; `share` is 0 if no random mismatches were
    found, and then every weight is 1.
    `z`, `r` float64 [N]: scores of the pairs, standardised per fold, and their ranks as normal quantiles, larger is
    more suspicious; `z0`, `r0` float64 [N]: those of the mismatches that were made of their images.
    `noise_sha256` names the pairs (`CaptionNoise.sha256`). `is_weak`: the judge ranks too many right pairs like
    mismatches to tell how many are wrong; then `share` and `low` are 0, every weight is 1, and only `high` is known.
    """

    weights: np.ndarray
    weights_before_siblings: np.ndarray
    share: float
    low: float
    high: float
    z: np.ndarray
    z0: np.ndarray
    r: np.ndarray
    r0: np.ndarray
    noise_sha256: str = ""
    is_weak: bool = False

    @property
    def residual(self) -> float:
        """See `weights.residual`."""
        return residual(self.weights)

    @property
    def sentence(self) -> str:
        """How many captions are wrong, in words."""
        of = f"of {len(self.weights):,} captions are wrong"
        return share_in_words((self.share, self.low, self.high), of, is_weak=self.is_weak)


def judge(
    folds: Sequence[FoldScores],
    count: int,
    seed: int,
    siblings: bool = True,
    noise_sha256: str = "",
    null: "MadeNull | None" = None,
) -> Judgement:
    """The probability that each of `count` pairs is right, and the share that is wrong.

    folds: scores of all pairs, each of them in one fold.
    seed: of the bootstrap.
    siblings: whether other captions of an image count as evidence; the folds then need `texts`.
    null: what `made_null` gave for these folds, if it is known already.

    Raises ValueError if the folds do not hold every pair once, or have no texts.
    """
    _check(folds, count, siblings)
    z, z0 = np.empty((2, count))
    for fold in folds:
        z[fold.pairs], z0[fold.pairs] = standardised(fold.z, fold.z0)
    null = null or made_null(folds, count, seed)
    before = null.probability(z, z0)
    weights = before
    if siblings and null.share > 0:
        features = np.empty((count, 2))
        for fold in folds:
            features[fold.pairs] = sibling_features(fold, before[fold.pairs])
        weights = with_siblings(features, before, has_siblings(null.image))
    share = null.share, null.low, null.high
    return Judgement(weights, before, *share, z, z0, null.r, null.r0, noise_sha256, null.is_weak)


@dataclass(frozen=True, eq=False)
class MadeNull:
    """What wrong pairs look like, and how many there are: this calibrates every score that has made mismatches.

    `share`, `low`, `high`, `r`, `r0`, `is_weak`: see `Judgement`. `image` int64 [N]: the image of every pair, over all
    folds. `is_made` bool [N]: whether the mismatch in the place of a pair is one. `weight` [M]: the weight of each of
    those that are, so that together they look like the wrong pairs.
    """

    share: float
    low: float
    high: float
    r: np.ndarray
    r0: np.ndarray
    image: np.ndarray
    is_made: np.ndarray
    weight: np.ndarray
    is_weak: bool = False

    def probability(self, x: np.ndarray, x0: np.ndarray) -> np.ndarray:
        """The probability that each pair is right, float64 [N], from the scores of pairs and of mismatches [N].

        1 for all if none were found to be wrong. NaN where the score of the pair is NaN; a mismatch whose score is NaN
        does not count.
        """
        known, made = ~np.isnan(x), self.is_made & ~np.isnan(x0)
        if self.share == 0 or not made.any():
            return np.where(known, 1.0, np.nan)
        found = np.full(len(x), np.nan)
        weight = self.weight[made[self.is_made]]
        found[known] = clean_probability(x[known], x0[made], self.share, weight)
        return found


def made_null(folds: Sequence[FoldScores], count: int, seed: int, is_made: np.ndarray | None = None) -> MadeNull:
    """How many of `count` pairs are wrong, by the ranks of the folds, and which mismatches look like them.

    A weak judge (see `Judgement`) finds none: what it cannot tell from mismatches may be right.

    seed: of the bootstrap. is_made: bool [count], the mismatches that count, of those that are mismatches at all.
    """
    r, r0 = np.empty((2, count))
    image, owner = np.empty((2, count), dtype=np.int64)
    made = np.ones(count, dtype=bool) if is_made is None else is_made.copy()
    first_image = 0
    for fold in folds:
        r[fold.pairs], r0[fold.pairs] = rank_score(fold.p, fold.images), rank_score(fold.p0, fold.images)
        image[fold.pairs], owner[fold.pairs] = first_image + fold.image, fold.pairs[fold.mismatch]
        made[fold.pairs] &= fold.is_made
        first_image += fold.images
    share = wrong_share(r, r0[made])
    interval = share_interval(r, r0, image, np.random.default_rng(seed), made)
    low, high = np.clip(interval, 0, 1).tolist()
    is_weak = low > 0 and high < BLIND and spread_of_right(r, r0[made], share) > WEAK
    if low == 0 or is_weak:  # the interval contains 0: no random mismatches found
        return MadeNull(0.0, 0.0, high, r, r0, image, made, np.ones(int(made.sum())), is_weak)
    by_rank = clean_probability(r, r0[made], share)
    return MadeNull(share, low, high, r, r0, image, made, reweighted_null(by_rank, owner[made]))


def _check(folds: Sequence[FoldScores], count: int, siblings: bool) -> None:
    pairs = np.concatenate([fold.pairs for fold in folds]) if folds else np.empty(0, dtype=np.int64)
    if not count or not np.array_equal(np.sort(pairs), np.arange(count)):
        raise ValueError(f"{len(folds)} folds hold {len(pairs)} pairs; expected each of {count} pairs once")
    for number, fold in enumerate(folds):
        if siblings and fold.texts is None:
            raise ValueError(
                f"fold {number} has no vectors of captions, by which captions of one image are compared; give it "
                "`texts`, or judge with siblings=False"
            )
