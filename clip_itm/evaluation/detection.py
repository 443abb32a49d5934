"""How well a score finds the wrong pairs among all pairs: area under the ROC curve, and precision at the top."""

import numpy as np


def auc(scores: np.ndarray, is_positive: np.ndarray) -> float | None:
    """Area under the ROC curve: the chance that a random positive outscores a random negative; ties count half.

    `scores` [N] may be infinite, `is_positive` is bool [N]. None if one of the classes is missing. Rank based
    (Mann-Whitney), O(N log N). Raises ValueError for NaN and for different shapes.

    Example:
        >>> auc(np.array([0.9, 0.8, 0.3, 0.1]), np.array([True, False, True, False]))
        0.75
    """
    scores, is_positive = _checked(scores, is_positive)
    positives = int(is_positive.sum())
    negatives = len(scores) - positives
    if not positives or not negatives:
        return None
    _, level, counts = np.unique(scores, return_inverse=True, return_counts=True)
    middle_rank = np.cumsum(counts) - (counts - 1) / 2  # equal scores share the mean of their ranks 1..N
    rank_sum = middle_rank[level[is_positive]].sum()
    return float((rank_sum - positives * (positives + 1) / 2) / (positives * negatives))


def precision_at(scores: np.ndarray, is_positive: np.ndarray, count: int) -> float:
    """Fraction of positives among the `count` highest scores; if scores tie for the last ranks, the expected one.

    `scores` [N], `is_positive` bool [N]. Raises ValueError unless 1 <= count <= N, for NaN and for different shapes.

    Example:
        >>> precision_at(np.array([0.9, 0.8, 0.3, 0.1]), np.array([True, False, True, False]), count=2)
        0.5
    """
    scores, is_positive = _checked(scores, is_positive)
    if not 1 <= count <= len(scores):
        raise ValueError(f"count must lie between 1 and the number of scores ({len(scores)}), got {count}")
    last = np.partition(scores, len(scores) - count)[len(scores) - count]
    above, tied = scores > last, scores == last
    found = is_positive[above].sum() + is_positive[tied].mean() * (count - above.sum())
    return float(found / count)


def _checked(scores: np.ndarray, is_positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores, is_positive = np.asarray(scores), np.asarray(is_positive)
    if scores.ndim != 1 or scores.shape != is_positive.shape or is_positive.dtype != bool:
        raise ValueError(
            f"expected scores [N] and bool [N], got {scores.shape} and {is_positive.dtype} {is_positive.shape}"
        )
    if np.isnan(scores).any():
        raise ValueError(f"{int(np.isnan(scores).sum())} of {len(scores)} scores are NaN")
    return scores, is_positive
