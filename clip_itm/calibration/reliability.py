"""Whether probabilities are probabilities: expected against observed, where the truth is known."""

from typing import NamedTuple

import numpy as np


class ReliabilityBin(NamedTuple):
    """Pairs whose probability is in one bin: how many, their mean probability, and the fraction that is right."""

    pairs: int
    expected: float
    observed: float


def reliability(probability: np.ndarray, is_right: np.ndarray, bins: int = 10) -> list[ReliabilityBin]:
    """Bins of equal width over [0, 1], without the empty ones, ascending.

    `probability` [N] in [0, 1]: that a pair is right; `is_right` bool [N].

    Example:
        >>> found = reliability(np.array([0.1, 0.7, 0.8, 0.9]), np.array([False, True, False, True]), bins=2)
        >>> [part.pairs for part in found]
        [1, 3]
    """
    probability, is_right = np.asarray(probability, dtype=np.float64), np.asarray(is_right)
    if probability.shape != is_right.shape or probability.ndim != 1 or is_right.dtype != bool or not len(is_right):
        raise ValueError(
            f"expected probabilities [N] and bool [N], got {probability.shape} and {is_right.dtype} {is_right.shape}"
        )
    if not ((probability >= 0) & (probability <= 1)).all():
        raise ValueError("probabilities must lie between 0 and 1")
    place = np.minimum((probability * bins).astype(int), bins - 1)
    count, expected, observed = (np.bincount(place, part, bins) for part in (None, probability, is_right))
    return [
        ReliabilityBin(int(count[k]), float(expected[k] / count[k]), float(observed[k] / count[k]))
        for k in np.flatnonzero(count)
    ]


def calibration_error(probability: np.ndarray, is_right: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error: the mean over pairs of |expected - observed| of their bin (`reliability`)."""
    found = reliability(probability, is_right, bins)
    return sum(part.pairs * abs(part.expected - part.observed) for part in found) / sum(part.pairs for part in found)
