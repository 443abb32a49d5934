"""How many of the pairs are wrong: the tail of their ranks beside that of made mismatches.

The rank of the own image among all images is uniform for a caption that has nothing to do with it, and small for a
right one; so what lies in the upper tail is wrong (Storey, JRSS B 2002). But for right pairs that are hard: a weak
judge ranks 3 in 100 of them there. They get fewer towards the end of the tail, where wrong pairs are as many
everywhere, and that tells them apart (the estimates are read off at u = 1: Storey and Tibshirani, PNAS 2003).
"""

import numpy as np
import torch

TAILS = (0.6, 0.7, 0.8, 0.9)  # a single one with the least error is biased downwards where few pairs are wrong
# of the estimates: the density in the four parts of the tail as a straight line (least squares), read off at u = 1
END_OF_LINE = (-1.4, 1.2, 0.8, 0.4)
MISFIT = 1 / 3  # how much of what falls along it a line may miss at its end, being no curve


def rank_score(p: np.ndarray, images: int | np.ndarray) -> np.ndarray:
    """The normal quantile of ranks `p` [n] among `images`, kept within 1 / 2P and 1 - 1 / 2P: float64 [n]."""
    edge = 1 / (2 * np.asarray(images, dtype=np.float64))
    return torch.special.ndtri(torch.from_numpy(np.clip(p, edge, 1 - edge))).numpy()


def wrong_share(r: np.ndarray, r0: np.ndarray, clipped: bool = True) -> float:
    """The share of wrong pairs, from rank scores `r` [n] of the pairs and `r0` [m] of made mismatches.

    The mean over u in TAILS of mean(r > t_u) / (1 - u), t_u the u-quantile of r0; unless `clipped` to [0, 1], it is
    unbiased for pairs of which none is wrong or all are.

    Example:
        >>> r0 = np.linspace(-2, 2, 1000)
        >>> wrong_share(np.concatenate([r0[::4], np.full(750, -3.0)]), r0)
        0.25
    """
    share = float(tail_shares(r, r0).mean())
    return min(max(share, 0.0), 1.0) if clipped else share


def tail_shares(r: np.ndarray, r0: np.ndarray) -> np.ndarray:
    """The share of wrong pairs as each u in TAILS has it, float64 [len(TAILS)], not clipped."""
    return tail_counts(r, r0).mean(axis=0) / (1 - np.array(TAILS))


def lasting_share(shares: np.ndarray) -> np.ndarray:
    """What of the tail does not fall, from `tail_shares` [..., len(TAILS)]: [...], below 0 where it falls to nothing.

    The end of the straight line, less a third of what falls (their mean less that end). Of judges of seven kinds, on
    right captions of Flickr8k, lines missed the end by -.3 to +.3 of what falls.

    Example:
        >>> lasting_share(np.array([[0.2, 0.2, 0.2, 0.2], [0.04, 0.03, 0.02, 0.01]])).round(3)
        array([ 0.2  , -0.008])
    """
    end = shares @ np.array(END_OF_LINE)
    return end - MISFIT * (shares.mean(axis=-1) - end)


def tail_counts(x: np.ndarray, r0: np.ndarray) -> np.ndarray:
    """float64 [len(x), len(TAILS)]: 1 where x > t_u, the u-quantile of r0, 0 below.

    Ranks among few images tie: at t_u itself it is the fraction with which the mean over r0 is 1 - u exactly.
    """
    x, ordered = np.asarray(x)[:, None], np.sort(r0)
    tails = np.array(TAILS)
    threshold = ordered[np.ceil(tails * len(ordered)).astype(int) - 1]
    above = len(ordered) - np.searchsorted(ordered, threshold, side="right")
    equal = len(ordered) - np.searchsorted(ordered, threshold) - above
    return (x > threshold) + (x == threshold) * ((1 - tails) * len(ordered) - above) / equal


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

    From the lower end of `lasting_share` to the upper end of `wrong_share`: what falls along the tail may be right.
    An interval that contains 0 (its lower end may be below) says that no random mismatches were found.

    Pairs of an image are drawn together. Thresholds stay, and the tail of the mismatches drawn takes the place of
    1 - u, which is the same to first order and needs counts per image only; images with equal counts are drawn as one
    class, so that 200,000 pairs take seconds.
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
    tails = len(TAILS)
    expected = drawn[:, tails : 2 * tails] / made
    expected = np.where(expected > 0, expected, 1 - np.array(TAILS))
    shares = drawn[:, :tails] / pairs / expected
    low = min(np.quantile(part, 0.025) for part in (lasting_share(shares), shares.mean(axis=1)))
    # none in the tail: with 97.5 % the expected number of images there is below 3.7
    unseen = -np.log(0.025) / ((1 - TAILS[0]) * len(counts))
    return float(low), float(max(np.quantile(shares.mean(axis=1), 0.975), unseen))
