"""Which pairs a person looks at next: a random sample that tells how many are wrong, or those that decide most.

Orders are int64 arrays of pairs; whoever shows them leaves out what is marked already. Only `draw_sample` tells how
many are wrong: a pair that was drawn counts (`Mark.sampled`), even if it was marked before it was its turn.
"""

from typing import NamedTuple

import numpy as np

from clip_itm.training.clean_probability import CleanProbability

SIZE = 200  # pairs of a sample
STRATA = 10
SURPRISE = 0.2  # standard deviation of "is wrong" at least, as if 1 in 25 were not what the audit believes
THRESHOLD = 0.5  # a pair below it is more likely wrong than right


class Draw(NamedTuple):
    """`pairs` int64 [n], distinct, in the order to look at them; `weight` float64 [n]: for how many pairs each stands,
    up to a common factor (`Mark.weight`)."""

    pairs: np.ndarray
    weight: np.ndarray


def strata_of(clean: CleanProbability, count: int = STRATA) -> np.ndarray:
    """int64 [N]: pairs from the most suspicious on, cut into `count` parts (fewer if pairs are fewer) of one
    uncertainty.

    A pair has sqrt(p (1 - p)), at least SURPRISE. So equally many draws of each part are what Neyman's allocation
    gives (JRSS 1934): parts about which the audit is certain are large. Without any doubt they are quantiles.

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
    """A random sample of pairs, stratified by suspicion; every beginning of it is one, too, so that one may stop.

    clean: probabilities without marks, so that the sample stays what it is while they are made. size: of all strata
    together; the sample is smaller where pairs are fewer. seed: the same one gives the same sample.

    Rounds follow each other, in each of which every stratum gives one pair, strata in random order. A pair stands for
    those of its stratum.
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
    """All pairs int64 [N], those first that are nearest to the line between wrong and right.

    A mark settles whether a pair is left out, and without it that decision is wrong with probability min(p, 1 - p),
    which is largest at the line. Nearness is that of places in the order, so that equal probabilities do not tie.
    Where nothing is below the line, this is `worst_first`.

    clean: probabilities that heed the marks made so far (`Audit.clean`).

    Example:
        >>> clean = CleanProbability(np.array([0.0, 0.4, 0.6, 1.0]), np.arange(4.0), "by hand", "")
        >>> most_informative(clean)
        array([1, 2, 0, 3])
    """
    order = clean.order()
    line = int((clean.values < THRESHOLD).sum())
    return order[np.argsort(np.abs(np.arange(len(order)) + 0.5 - line), kind="stable")]
