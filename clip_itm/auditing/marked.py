"""What marks say about all pairs: how many are wrong, and probabilities that take the marks into account.

Two answers are weighted by how well they predict the marks of the random sample, stratified as it was drawn
(`sampling.py`). In stratum h of N_h pairs, k of n marks say wrong, and the audit says that the share q_h is:

    believed    theta_h ~ Beta(nu q_h, nu (1 - q_h)), nu one of SCATTER: made mismatches are right up to some scatter
    distrusted  nothing is known but the marks: the stratified mean, parts with Beta(1/2H + k_h, 1/2H + n_h - k_h)

Both have even odds before the marks; after them, their evidence decides (Bayesian model averaging; the evidence of
"distrusted" is that of theta_h ~ Beta(1/2, 1/2)). So marks that agree with the audit narrow its answer. A few that
contradict it, as when wrong captions are near misses, leave only the stratified mean, which is unbiased. A reviewer's
own errors do not count against the audit as long as they are few (EASILY_WRONG).
"""

from dataclasses import replace

import numpy as np
import torch

from clip_itm.auditing.sampling import STRATA, strata_of
from clip_itm.data.marked_pairs import MarkedPairs
from clip_itm.training.clean_probability import CleanProbability
from clip_itm.visible import counted

FEWEST = 10  # marks of the sample that say something
PART = 20  # marks in each part of a stratified mean: with fewer, the scatter within a part is not seen
SCATTER = (5, 10, 30, 100)  # strength of the belief in each stratum, in pairs
EASILY_WRONG = 0.02  # of the marks may say wrong in a stratum where all are believed right, and vice versa
EDGE = 0.001  # no stratum is certain, so that logits are finite
DRAWS = 4000
ENDS = (0.025, 0.975)


def by_marks(
    clean: CleanProbability, marked: MarkedPairs, seed: int = 0, believed: bool = True
) -> tuple[CleanProbability, tuple[float, float, float]]:
    """Probabilities with marks, and the share of wrong pairs with its 95 % interval.

    clean: as judged, with its share. marked: of these pairs. seed: of the draws behind the interval. believed: whether
    the judge may be believed; not one that does not know, or that was trained on the pairs.

    With FEWEST marks of a sample (fewer if there are fewer pairs), they change all probabilities and the share;
    otherwise only the marked pairs change: right is 1, wrong 0. Without any mark both are returned as they are.
    """
    assert clean.share is not None, "audits estimate it"
    share, values = clean.share, clean.values
    sampled = marked.sampled
    if is_enough(marked):
        own, stratum = clean.values.astype(np.float64), strata_of(clean)
        pairs, wrong = marked.pair[sampled], 1 - marked.label[sampled]
        rng = np.random.default_rng(seed)
        share, level = _weighed(clean, stratum, pairs, wrong, marked.weight[sampled], rng, believed)
        values = 1 - _moved(1 - own, stratum, level).astype(np.float32)
    known = ~np.isnan(marked.label)
    if not known.any():
        return clean, share
    values = values.copy()
    values[marked.pair[known]] = marked.label[known]
    least, most = ((marked.label == label).sum() / marked.count for label in (0, 1))
    share = tuple(float(min(max(part, least), 1 - most)) for part in share)
    method = f"{clean.method}; {counted(known.sum(), 'pair')} by marks"
    return replace(clean, values=values, method=method, share=share), share


def is_enough(marked: MarkedPairs) -> bool:
    """Whether marks of a random sample tell how many are wrong."""
    return int(marked.sampled.sum()) >= min(FEWEST, marked.count) > 0


def _weighed(
    clean: CleanProbability,
    stratum: np.ndarray,
    pairs: np.ndarray,
    wrong: np.ndarray,
    weight: np.ndarray,
    rng: np.random.Generator,
    can_be_believed: bool,
) -> tuple[tuple[float, float, float], np.ndarray]:
    """The share with its interval, and the share of wrong pairs of each stratum [H]."""
    size = np.bincount(stratum)
    total = size.sum()
    q = np.bincount(stratum, 1 - clean.values.astype(np.float64)) / np.maximum(size, 1)
    n, k = _counts(stratum[pairs], wrong, weight, len(size))
    nu = np.array(SCATTER)[:, None]
    likely = np.clip(q, EASILY_WRONG, 1 - EASILY_WRONG)
    evidence = np.append(_evidence(nu * likely, nu * (1 - likely), n, k), _evidence(0.5, 0.5, n, k))
    odds = np.exp(evidence - evidence.max()) * np.append(np.full(len(SCATTER), can_be_believed / len(SCATTER)), 1)
    odds /= odds.sum()

    near = np.clip(q, EDGE, 1 - EDGE)
    chosen = rng.choice(len(odds), DRAWS, p=odds)
    nus = nu[np.minimum(chosen, len(SCATTER) - 1)]
    believed = (k + (size - n) * rng.beta(nus * near + k, nus * (1 - near) + n - k)).sum(axis=1) / total
    mean, distrusted = _stratified(clean, pairs, wrong, weight, rng)
    drawn = np.where(chosen < len(SCATTER), believed, distrusted)
    low, high = np.quantile(drawn, ENDS)

    within = np.where((q == 0) & (k == 0), 0, (nu * near + k) / (nu + n))  # neither the audit nor a mark says wrong
    trust = 1 - odds[-1]
    share = odds[:-1] @ (k + (size - n) * within).sum(axis=1) / total + (1 - trust) * mean
    level = odds[:-1] @ within + (1 - trust) * _falling((k + mean) / (n + 1), n + 1)
    low = low if wrong.any() else 0.0
    return (float(share), float(min(low, share)), float(max(high, share))), level


def _counts(stratum: np.ndarray, wrong: np.ndarray, weight: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """How many marks each stratum has and how many say wrong, float64 [count]: effective numbers if weights differ."""
    total = np.bincount(stratum, weight, minlength=count)
    squares = np.bincount(stratum, weight**2, minlength=count)
    said = np.bincount(stratum, weight * wrong, minlength=count)
    n = np.divide(total**2, squares, out=np.zeros(count), where=squares > 0)
    return n, np.divide(said * n, total, out=np.zeros(count), where=total > 0)


def _evidence(a: np.ndarray | float, b: np.ndarray | float, n: np.ndarray, k: np.ndarray) -> np.ndarray:
    """log of the probability of the marks if strata are Beta(a, b): [...], summed over strata."""

    def log_beta(x, y) -> np.ndarray:
        x, y = torch.as_tensor(x, dtype=torch.float64), torch.as_tensor(y, dtype=torch.float64)
        return (torch.lgamma(x) + torch.lgamma(y) - torch.lgamma(x + y)).numpy()

    return (log_beta(a + k, b + n - k) - log_beta(a, b)).sum(axis=-1)


def _stratified(
    clean: CleanProbability, pairs: np.ndarray, wrong: np.ndarray, weight: np.ndarray, rng: np.random.Generator
) -> tuple[float, np.ndarray]:
    """The stratified mean of the marks, in parts of PART marks, and draws of what it may be [DRAWS]."""
    parts = max(1, min(len(pairs) // PART, STRATA))
    stratum = strata_of(clean, parts)
    size = np.bincount(stratum, minlength=parts)
    n, k = _counts(stratum[pairs], wrong, weight, parts)
    rate = np.divide(k, n, out=np.full(parts, wrong.mean()), where=n > 0)
    seen = np.bincount(stratum[pairs], minlength=parts) / np.maximum(size, 1)
    prior = 0.5 / parts
    drawn = rng.beta(prior + k, prior + n - k, size=(DRAWS, parts))
    return float((size * rate).sum() / size.sum()), (size * (seen * rate + (1 - seen) * drawn)).sum(axis=1) / size.sum()


def _falling(rate: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The rates of strata, made to fall from the most suspicious stratum on."""
    from sklearn.isotonic import IsotonicRegression

    return IsotonicRegression(increasing=False).fit_transform(np.arange(len(rate)), rate, sample_weight=weight)


def _moved(wrong: np.ndarray, stratum: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Probabilities [N] with the logits of each stratum moved together, so that its mean is its `level` [H]."""
    kept = np.clip(wrong, EDGE, 1 - EDGE)
    logit = np.log(kept / (1 - kept))
    low, high = (np.full(len(level), end) for end in (-20.0, 20.0))
    size = np.maximum(np.bincount(stratum, minlength=len(level)), 1)
    for _ in range(40):
        middle = (low + high) / 2
        mean = np.bincount(stratum, 1 / (1 + np.exp(-logit - middle[stratum])), minlength=len(level)) / size
        low, high = np.where(mean < level, middle, low), np.where(mean < level, high, middle)
    return 1 / (1 + np.exp(-logit - low[stratum]))
