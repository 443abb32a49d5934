"""From scores to probabilities: the local false discovery rate of two groups, one of which was made.

Efron, Tibshirani, Storey and Tusher, JASA 2001: where a share pi of the pairs is wrong, f is the density of the scores
of all pairs and f0 that of wrong ones, a pair is right with probability 1 - pi f0 / f.
"""

import numpy as np

SMALLEST_NULL_WEIGHT = 0.001  # of a made mismatch whose caption is surely right where it comes from


def standardised(z: np.ndarray, z0: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both minus the median of z0, over its standard deviation, so that scores of several models are comparable."""
    deviation = float(z0.std())
    scale = deviation if deviation > 0 else 1.0
    return (z - np.median(z0)) / scale, (z0 - np.median(z0)) / scale


def density_ratio(x: np.ndarray, x0: np.ndarray, null_weight: np.ndarray | None = None) -> np.ndarray:
    """h = f / (f + f0) at each of `x` [n], in (0, 1]: float64 [n], never rising with x.

    An isotonic regression of the label (1 for `x`, 0 for `x0` [m]) on the score, both groups of equal total weight;
    `null_weight` [m]: how much each of x0 counts among them.
    """
    from sklearn.isotonic import IsotonicRegression

    weight0 = np.ones(len(x0)) if null_weight is None else np.asarray(null_weight, dtype=np.float64)
    weight = np.concatenate([np.full(len(x), 1 / len(x)), weight0 / weight0.sum()])
    label = np.repeat([1.0, 0.0], [len(x), len(x0)])
    fitted = IsotonicRegression(increasing=False, y_min=0, y_max=1)
    return fitted.fit_transform(np.concatenate([x, x0]), label, sample_weight=weight)[: len(x)]


def clean_probability(x: np.ndarray, x0: np.ndarray, share: float, null_weight: np.ndarray | None = None) -> np.ndarray:
    """The probability that a pair is right, float64 [n]: 1 - share f0 / f, kept within [0, 1]; see `density_ratio`.

    x: [n] scores of the pairs, larger is more suspicious. x0: [m] of wrong pairs. share: of the pairs that is wrong.

    Example:
        >>> clean_probability(np.array([1.0, 2.0, 9.0, 8.5]), np.array([8.0, 8.1, 8.2, 8.3]), share=0.5)
        array([1., 1., 0., 0.])
    """
    h = density_ratio(x, x0, null_weight)
    return np.clip(1 - share * (1 - h) / np.maximum(h, np.finfo(np.float64).tiny), 0, 1)


def reweighted_null(rank_weights: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """The weight of each made mismatch, float64 [m], so that together they look like the wrong pairs.

    A wrong caption is not just any caption: mostly its right image is missing. So the weight of a mismatch is the
    probability that its caption is wrong where it comes from. `rank_weights` [N]: the probability that a pair is right,
    by its rank; `owner` int64 [m]: the pair whose caption the mismatch was given.
    """
    return 1 - rank_weights[owner] + SMALLEST_NULL_WEIGHT


def residual(weights: np.ndarray) -> float:
    """The share of wrong pairs among what is kept, by the weights [n]: sum w (1 - w) / sum w; 1 for nothing.

    Example:
        >>> residual(np.array([1.0, 0.5, 0.5]))
        0.25
    """
    total = weights.sum()
    return float((weights * (1 - weights)).sum() / total) if total > 0 else 1.0
