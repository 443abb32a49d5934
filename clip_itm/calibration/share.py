"""How many of the pairs are wrong: the tail of their ranks next to that of made mismatches.

The rank of the own image among all images is uniform for a caption that has nothing to do with it, and small for a
right one; so what is in the upper tail is wrong (Storey, JRSS B 2002), except for hard right pairs: a weak judge ranks
3 in 100 right pairs there. These get fewer towards the end of the tail, while wrong pairs are spread evenly over it,
and that tells them apart (the estimates are read off at u = 1: Storey and Tibshirani, PNAS 2003).
"""

import numpy as np
import torch

TENTHS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
TAILS = TENTHS[-4:]  # a single u with the least error is biased downwards where few pairs are wrong
LINES = (4, 6, 8)  # tenths under a straight line: a short one sees small shares, a long one few pairs
BLIND = 0.95  # an interval that reaches this far says that pairs look like mismatches to the judge
# the fraction of right pairs among the worse mismatches from which on the tail may hold as many right pairs all along:
# judges with an AUC of .84 or more on right captions stay below .26, however many are wrong; a judge of photos has .44
# on drawings
WEAK = 0.3
MISFIT = 1 / 3  # of what falls along the shortest line may be missed at its end, because it is not a curve


def rank_score(p: np.ndarray, images: int | np.ndarray) -> np.ndarray:
    """The normal quantile of ranks `p` [n] among `images`, kept within 1 / 2P and 1 - 1 / 2P: float64 [n]."""
    edge = 1 / (2 * np.asarray(images, dtype=np.float64))
    return torch.special.ndtri(torch.from_numpy(np.clip(p, edge, 1 - edge))).numpy()


def wrong_share(r: np.ndarray, r0: np.ndarray, clipped: bool = True) -> float:
    """The share of wrong pairs, from rank scores `r` [n] of the pairs and `r0` [m] of made mismatches.

    The mean over u in TAILS of mean(r > t_u) / (1 - u), t_u the u-quantile of r0; unless `clipped` to [0, 1], it is
    unbiased if none or all of the pairs are wrong.

    Example:
        >>> r0 = np.linspace(-2, 2, 1000)
        >>> wrong_share(np.concatenate([r0[::4], np.full(750, -3.0)]), r0)
        0.25
    """
    share = float(tail_shares(r, r0)[-len(TAILS) :].mean())
    return min(max(share, 0.0), 1.0) if clipped else share


def tail_shares(r: np.ndarray, r0: np.ndarray) -> np.ndarray:
    """The share of wrong pairs by each u in TENTHS, float64 [len(TENTHS)], not clipped."""
    return tail_counts(r, r0).mean(axis=0) / (1 - np.array(TENTHS))


def spread_of_right(r: np.ndarray, r0: np.ndarray, share: float) -> float:
    """The fraction of the right pairs that the judge ranks no better than it ranks four in five mismatches.

    r, r0: rank scores of pairs [n] and of made mismatches [m]. share: of wrong pairs, below 1: they take their part of
    that range, and the rest of it is right.

    Example:
        >>> r0 = np.linspace(-2, 2, 1000)
        >>> round(spread_of_right(np.concatenate([r0, np.full(1000, -3.0)]), r0, 0.5), 3)
        0.0
    """
    return float((tail_shares(r, r0)[0] - share) * (1 - TENTHS[0]) / (1 - share))


def lasting_shares(shares: np.ndarray) -> np.ndarray:
    """The part of the tail that does not fall, from `tail_shares` [..., len(TENTHS)]: [..., len(LINES)].

    The density of the ranks in the last tenths as a straight line (least squares), read off at u = 1; below 0 if
    nothing lasts. Ranks of right pairs fall ever more slowly, so that a long line ends too low rather than too high.
    The shortest one may miss the end by a third of what falls (the mean estimate less that end): with judges of seven
    kinds, on right captions of Flickr8k, it was -.3 to +.3.

    Example:
        >>> lasting_shares(np.full(8, 0.2)).round(3)
        array([0.2, 0.2, 0.2])
        >>> lasting_shares(0.1 * (1 - np.array(TENTHS)) ** 2).round(3)
        array([-0.013, -0.018, -0.032])
    """
    mass = shares * (1 - np.array(TENTHS))
    density = -10 * np.diff(mass, axis=-1, append=0)
    ends = np.stack([density[..., -tenths:] @ _end_of_line(tenths) for tenths in LINES], axis=-1)
    ends[..., 0] -= MISFIT * (shares[..., -len(TAILS) :].mean(axis=-1) - ends[..., 0])
    return ends


def _end_of_line(tenths: int) -> np.ndarray:
    """Weights of the densities in the last tenths that give the value at 1 of the least squares line through them."""
    to_end = np.arange(tenths)[::-1] / 10 + 0.05
    return np.linalg.pinv(np.stack([np.ones(tenths), to_end], axis=1))[0]


def tail_counts(x: np.ndarray, r0: np.ndarray) -> np.ndarray:
    """float64 [len(x), len(TENTHS)]: 1 where x > t_u, the u-quantile of r0, 0 below.

    Ranks among few images tie: at t_u itself it is the fraction that makes the mean over r0 exactly 1 - u.
    """
    x, ordered = np.asarray(x)[:, None], np.sort(r0)
    tenths = np.array(TENTHS)
    threshold = ordered[np.ceil(tenths * len(ordered)).astype(int) - 1]
    above = len(ordered) - np.searchsorted(ordered, threshold, side="right")
    equal = len(ordered) - np.searchsorted(ordered, threshold) - above
    return (x > threshold) + (x == threshold) * ((1 - tenths) * len(ordered) - above) / equal


def share_interval(
    r: np.ndarray,
    r0: np.ndarray,
    image: np.ndarray,
    rng: np.random.Generator,
    is_made: np.ndarray | None = None,
    resamples: int = 1000,
) -> tuple[float, float]:
    """The 95 % interval of the unclipped share of wrong pairs, by a bootstrap over images.

    r, r0 [n]: rank scores of pairs and of their made mismatches; `image` int64 [n]; `is_made` bool [n]: mismatches
    that count (all by default).

    It goes from the lower end of what lasts (the highest of `lasting_shares`) to the upper end of `wrong_share`: what
    falls along the tail may be right. An interval that contains 0 (its lower end may be below) says that no random
    mismatches were found, as for right captions in 98 of 100 draws, with judges of seven kinds, 80 to 6,000 images.

    Pairs of an image are drawn together. Thresholds stay fixed, and the tail of the drawn mismatches replaces 1 - u,
    which is the same to first order and needs only counts per image; images with equal counts are drawn as one class,
    so that 200,000 pairs take seconds.
    """
    is_made = np.ones(len(r), dtype=bool) if is_made is None else is_made
    null = tail_counts(r0, r0[is_made]) * is_made[:, None]
    of_pair = np.column_stack([tail_counts(r, r0[is_made]), null, np.ones(len(r)), is_made])
    _, index = np.unique(image, return_inverse=True)
    counts = np.zeros((index.max() + 1, of_pair.shape[1]))
    np.add.at(counts, index, of_pair)
    classes, number = np.unique(counts.round(9), axis=0, return_counts=True)
    drawn = rng.multinomial(len(counts), number / len(counts), size=resamples) @ classes
    pairs, made = drawn[:, -2:-1], np.maximum(drawn[:, -1:], 1)
    tenths = len(TENTHS)
    expected = drawn[:, tenths : 2 * tenths] / made
    expected = np.where(expected > 0, expected, 1 - np.array(TENTHS))
    shares = drawn[:, :tenths] / pairs / expected
    found = shares[:, -len(TAILS) :].mean(axis=1)
    low = min(np.quantile(lasting_shares(shares), 0.025, axis=0).max(), np.quantile(found, 0.025))
    # none in the tail: with 97.5 % confidence, the expected number of images there is below 3.7
    unseen = -np.log(0.025) / ((1 - TAILS[0]) * len(counts))
    return float(low), float(max(np.quantile(found, 0.975), unseen))
