"""What the folds found, as probabilities of the pairs: from made mismatches, and two estimates to compare with."""

import numpy as np

from clip_itm.calibration.estimate import Judgement
from clip_itm.calibration.scores import FoldScores
from clip_itm.calibration.share import BLIND
from clip_itm.methods.mixture import fit_mixture
from clip_itm.training.clean_probability import CleanProbability


def is_blind(found: CleanProbability) -> bool:
    """Whether the judge cannot distinguish pairs from mismatches: it knows too little, or nearly all are wrong."""
    return found.share is not None and found.share[2] >= BLIND


def from_judgement(judgement: Judgement) -> CleanProbability:
    """Calibrated weights (1 from a blind or weak judge), and the share of wrong pairs with its interval."""
    weights = np.ones_like(judgement.weights) if judgement.high >= BLIND else judgement.weights
    return CleanProbability(
        values=weights.astype(np.float32),
        ranking=-judgement.z.astype(np.float32),
        method="cross-fit: models of other photos, calibrated by made mismatches",
        noise_sha256=judgement.noise_sha256,
        share=(judgement.share, judgement.low, judgement.high),
        is_weak=judgement.is_weak,
    )


def from_mixture(judged: list[tuple[FoldScores, np.ndarray]], seed: int, noise_sha256: str) -> CleanProbability:
    """The control: 1 or 0 for pairs that a mixture of two Gaussians on the losses of their fold believes or doubts.

    The share is that of the mixture, and has no interval.
    """
    count = sum(len(losses) for _, losses in judged)
    posterior, ranking = np.empty((2, count))
    for scores, losses in judged:
        posterior[scores.pairs] = fit_mixture(losses, seed).monotone_clean_posterior(losses)
        ranking[scores.pairs] = -losses
    share = float(1 - posterior.mean())
    return CleanProbability(
        values=(posterior > 0.5).astype(np.float32),
        ranking=ranking.astype(np.float32),
        method="cross-fit: mixture of two components on the losses of models of other photos; doubted pairs go",
        noise_sha256=noise_sha256,
        share=(share, share, share),
    )


def from_truth(is_clean: np.ndarray, noise_sha256: str) -> CleanProbability:
    """The oracle: `is_clean` bool [N]."""
    values = is_clean.astype(np.float32)
    share = float(1 - values.mean(dtype=np.float64))
    return CleanProbability(
        values=values, ranking=values, method="the truth", noise_sha256=noise_sha256, share=(share, share, share)
    )
