"""Which pairs a person looks at next: a random sample that tells how many are wrong, or those that decide most.

Orders are int64 arrays of pairs; whoever shows them leaves out pairs that are already marked. Only `draw_sample` tells
how many are wrong: a pair that was drawn counts (`Mark.sampled`), even if it was marked before its turn.
"""

from typing import NamedTuple

import numpy as np

from clip_itm.training.clean_probability import CleanProbability

SIZE = 200  # pairs of a sample
STRATA = 10
SURPRISE = 0.2  # least standard deviation of "is wrong", as if the audit were mistaken about 1 in 25
THRESHOLD = 0.5  # a pair below it is more likely wrong than right


class Draw(NamedTuple):
    """Pairs to look at: `pairs` int64 [n], distinct and in order.

    `weight` float64 [n]: how many pairs each represents, up to a common factor (`Mark.weight`).
    """

    pairs: np.ndarray
    weight: np.ndarray


def strata_of(clean: CleanProbability, count: int = STRATA) -> np.ndarray:
    """The stratum of each pair, int64 [N]: `count` parts of equal uncertainty, from the most suspicious pairs on.

    There are fewer parts if there are fewer pairs. The uncertainty of a pair is sqrt(p (1 - p)), at least SURPRISE, so
    that equally many draws from each part are Neyman's allocation (JRSS 1934): parts about which the audit is certain
    are large. Without any doubt they are quantiles.

    Example:
        >>> clean = CleanProbability(np.array([1, 1, 0.5, 1]), np.arange(4.0), "by hand", "")
        >>> strata_of(clean, 2)
        array([1, 1, 0, 1])
    """
    count = min(count, len(clean.values))
    order, p = clean.order(), clean.values.astype(np.float64)
    until = np.cumsum(np.maximum(np.sqrt(p * (1 - p)), SURPRISE)[order])
    found = np.empty(len(order), dtype=np.int64)
    found[order] = np.minimum((until * count / until[-1] - 1e-9).astype(np.int64), count - 1) if count else 0
    return found


def draw_sample(clean: CleanProbability, size: int = SIZE, seed: int = 0) -> Draw:
    """A random sample of pairs, stratified by suspicion; every prefix of it is one, too, so that one may stop early.

    clean: probabilities without marks, so that the sample stays the same while marks are made. size: of all strata
    together; the sample is smaller if there are fewer pairs. seed: the same one gives the same sample.

    In each round every stratum gives one pair, strata in random order. A pair represents those of its stratum.
    """
    rng = np.random.default_rng([seed, len(clean.values)])
    stratum = strata_of(clean)
    sizes = np.bincount(stratum)
    shuffled = rng.permutation(len(stratum))
    by_stratum = shuffled[np.argsort(stratum[shuffled], kind="stable")]
    turn = np.arange(len(stratum)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    within = turn < size
    pairs, turn, place = by_stratum[within], turn[within], rng.random(len(stratum))[within]
    pairs = pairs[np.lexsort((place, turn))][:size]
    return Draw(pairs, sizes[stratum[pairs]].astype(np.float64))


def worst_first(clean: CleanProbability) -> np.ndarray:
    """All pairs int64 [N], most suspicious first."""
    return clean.order()


def most_informative(clean: CleanProbability) -> np.ndarray:
    """All pairs int64 [N], those nearest to the line between wrong and right first.

    A mark settles whether a pair is left out, and without it that decision is wrong with probability min(p, 1 - p),
    which is largest at the line. Nearness is measured in places in the order, so that equal probabilities do not tie.
    If nothing is below the line, this is `worst_first`.

    clean: probabilities that heed the marks made so far (`Audit.clean`).

    Example:
        >>> clean = CleanProbability(np.array([0.0, 0.4, 0.6, 1.0]), np.arange(4.0), "by hand", "")
        >>> most_informative(clean)
        array([1, 2, 0, 3])
    """
    order = clean.order()
    line = int((clean.values < THRESHOLD).sum())
    return order[np.argsort(np.abs(np.arange(len(order)) + 0.5 - line), kind="stable")]
