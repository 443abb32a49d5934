"""How many captions are wrong, and which, from embeddings: all available scores, by the same made mismatches."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from clip_itm.auditing.lemon import NEIGHBOURS, has_neighbours, lemon_scores
from clip_itm.auditing.scores import Scores, clip_scores, loss_scores, rank_scores, sibling_scores
from clip_itm.calibration.equal_captions import EqualCaptions
from clip_itm.calibration.estimate import MadeNull, judge, made_null
from clip_itm.calibration.scores import BLOCK, FoldScores, Score, made_mismatches, score_pairs
from clip_itm.calibration.siblings import has_siblings
from clip_itm.distributed import process_index

CANDIDATES = 50_000  # with more pairs than this, each is compared with this many at random
FEW_CANDIDATES = 1_000  # the same for similarities that are not dot products
MISFIT = 0.02  # how far the share that a score implies may be outside the interval


@dataclass(frozen=True, eq=False)
class PairScore:
    """One score of N pairs: `suspicion` float64 [N], larger is more suspicious, NaN where it is not defined.

    `probability` float64 [N]: that a pair is right; NaN where the score is not defined; None if the score only ranks,
    for the reason `why`.
    """

    suspicion: np.ndarray
    probability: np.ndarray | None
    why: str = ""


@dataclass(frozen=True, eq=False)
class Estimate:
    """What was found for N pairs: scores by name, the `default` one first, and how many captions are wrong.

    `share`, `low`, `high`: the share of wrong pairs and its 95 % interval; `share` is 0 if no random mismatches were
    found, and then every probability is 1. `missing`: name of a score -> why it is missing. `is_weak`: the judge ranks
    too many right pairs like mismatches to tell how many are wrong; then `share` and `low` are 0, and only `high` is
    known.
    """

    scores: dict[str, PairScore]
    share: float
    low: float
    high: float
    missing: dict[str, str] = field(default_factory=dict)
    is_weak: bool = False

    @property
    def default(self) -> str:
        return next(iter(self.scores))

    @property
    def probability(self) -> np.ndarray:
        """The probability of the default score."""
        found = self.scores[self.default].probability
        assert found is not None, "the default score is calibrated"
        return found


def estimate(
    images: Tensor,
    texts: Tensor,
    image: np.ndarray,
    text: np.ndarray,
    *,
    scale: float,
    score: Score,
    vectors: Callable[[Tensor], Tensor] | None,
    has_loss: bool = False,
    seed: int = 0,
    candidates: int | None = CANDIDATES,
    equal: EqualCaptions | None = None,
) -> Estimate:
    """Scores of pairs under a model, calibrated by made mismatches.

    images: [P, ...] embeddings. texts: [N, ...], of the caption of every pair.
    image, text: int64 [N], the image of every pair, and a number that equal captions share.
    scale: positive factor of similarities, such as exp(logit_scale).
    score: similarities [p, b], rows are images.
    vectors: unit vectors of captions, from `texts`; None if `texts` are unit vectors compared by their dot product,
        which LEMoN needs.
    has_loss: whether the contrastive loss is a score, too (it is what the model of a run was trained on).
    seed: of mismatches, candidates and bootstrap. candidates, equal: see `score_pairs`.

    Raises ValueError for fewer than two images, and if all captions are the same.
    """
    generator = np.random.default_rng([seed, len(image)])
    mismatch = made_mismatches(image, generator, equal)
    is_made = ~EqualCaptions(image, text).fits(np.arange(len(image)), mismatch)
    if not is_made.any():
        raise ValueError(f"all {len(text)} captions are the same text, so that none is known to be wrong for a photo")
    names = ["crossfit", "clip", "rank", "lemon", *["loss"] * has_loss, "siblings"]
    with tqdm(total=len(names), desc="scores", unit="", leave=False, disable=process_index() != 0) as bar:
        fold = score_pairs(images, texts, image, mismatch, scale, score, BLOCK, candidates, generator, equal)
        with torch.inference_mode():
            of_texts = (texts if vectors is None else vectors(texts)).float().cpu().numpy()
        fold = replace(fold, texts=of_texts)
        chosen = None
        if candidates is not None and candidates < len(image):
            chosen = np.sort(generator.choice(len(image), candidates, replace=False))
        basics = (images, texts, image, mismatch)
        makers: dict[str, Callable[[], Scores]] = {
            "clip": lambda: clip_scores(*basics, score),
            "rank": lambda: rank_scores(*basics, score, fold.p, fold.p0, chosen),
            "lemon": lambda: lemon_scores(*basics, text, compared=chosen),
            "loss": lambda: loss_scores(*basics, scale, score, seed),
            "siblings": lambda: sibling_scores(of_texts, image, mismatch),
        }
        missing = {}
        if vectors is not None:
            missing["lemon"] = "it compares vectors, and this model compares more than two vectors"
        elif not has_neighbours(image, text, chosen):
            missing["lemon"] = f"it needs {NEIGHBOURS} neighbours of other photos and other texts"
        if not has_siblings(image).any():
            missing["siblings"] = "no photo has a second caption"
        found = {}
        for name in names[1:]:
            bar.update()
            if name not in missing:
                found[name] = makers[name]()
    return calibrated(fold, found, missing, seed, is_made)


def calibrated(
    fold: FoldScores, found: dict[str, Scores], missing: dict[str, str], seed: int, is_made: np.ndarray | None = None
) -> Estimate:
    """Probabilities of all scores by one made null; the default is crossfit's z, which `fold` has.

    It includes the evidence of an image's other captions, unless these are wrong together.
    """
    null = made_null([fold], len(fold.z), seed, is_made)
    scores = {name: pair_score(both, null) for name, both in found.items()}
    testify = "siblings" in scores and scores["siblings"].probability is not None
    judgement = judge([fold], len(fold.z), seed, testify, null=null)
    scores = {"crossfit": PairScore(judgement.z, judgement.weights), **scores}
    return Estimate(scores, null.share, null.low, null.high, missing, null.is_weak)


def pair_score(both: Scores, null: MadeNull) -> PairScore:
    """A score with its probabilities, unless the judge is weak or they contradict the share.

    If they do, wrong pairs are not like the mismatches to this score: so it is with siblings if all captions of an
    image are wrong together and say the same.
    """
    if null.is_weak:
        return PairScore(both.pairs, None, "the model knows such photos too little")
    probability = null.probability(*both)
    implied = 1 - float(np.nanmean(probability))
    if null.low - MISFIT <= implied <= null.high + MISFIT:
        return PairScore(both.pairs, probability)
    why = f"by it {100 * implied:.1f} % would be wrong: wrong captions of these data are not like made mismatches to it"
    return PairScore(both.pairs, None, why)
