"""Recall, median and mean rank from ranks, with bootstrap intervals; all recalls in percent.

Several functions take `folds`: one `Ranks` per disjoint part of the test set (usually one; five for COCO-1K). A metric
of several folds is the mean over the folds.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from clip_itm.evaluation.ranking import Ranks

CUTOFFS = (1, 5, 10)
RECALLS = tuple(f"{direction}_r{k}" for direction in ("i2t", "t2i") for k in CUTOFFS)
SUMMARIES = ("rsum", "mean_r1")
LEVEL = 95  # percent, of every interval


def recall_metrics(ranks: Ranks, pessimistic: bool = False) -> dict[str, float]:
    """R@1, 5, 10, median and mean rank in both directions, `rsum` (six recalls added), `mean_r1` (mean of both R@1).

    Keys: `i2t_r1`, ..., `t2i_r10`, `i2t_median_rank`, `i2t_mean_rank`, `t2i_...`, `rsum`, `mean_r1`. A median between
    two ranks is rounded down to an integer rank, as in published tables. `pessimistic` counts ties as lost.

    Example:
        >>> owner = np.array([0, 1, 2, 3])  # one caption for each of four images
        >>> ranks = Ranks(*[np.array([1, 7, 2, 1])] * 4, owner, owner)
        >>> metrics = recall_metrics(ranks)
        >>> metrics["i2t_r1"], metrics["i2t_r5"], metrics["i2t_median_rank"]
        (50.0, 75.0, 1.0)
    """
    i2t = ranks.image_to_text_pessimistic if pessimistic else ranks.image_to_text
    t2i = ranks.text_to_image_pessimistic if pessimistic else ranks.text_to_image
    metrics: dict[str, float] = {}
    for direction, values in (("i2t", i2t), ("t2i", t2i)):
        metrics |= {f"{direction}_r{k}": 100 * float(np.mean(values <= k)) for k in CUTOFFS}
        metrics[f"{direction}_median_rank"] = float(np.floor(np.median(values)))
        metrics[f"{direction}_mean_rank"] = float(np.mean(values))
    return metrics | summaries(metrics)


def summaries(metrics: dict) -> dict:
    """`rsum` and `mean_r1` from the six recalls (numbers, or arrays of replicates)."""
    return {
        "rsum": sum(metrics[name] for name in RECALLS),
        "mean_r1": (metrics["i2t_r1"] + metrics["t2i_r1"]) / 2,
    }


def mean_metrics(folds: Sequence[Ranks], pessimistic: bool = False) -> dict[str, float]:
    """Every entry of `recall_metrics`, averaged over the folds."""
    each = [recall_metrics(ranks, pessimistic) for ranks in folds]
    return {name: float(np.mean([metrics[name] for metrics in each])) for name in each[0]}


def tie_gaps(folds: Sequence[Ranks]) -> dict[str, float]:
    """Optimistic minus pessimistic recall, in points: how much of each recall, and of rsum, ties decide."""
    optimistic, pessimistic = mean_metrics(folds), mean_metrics(folds, pessimistic=True)
    return {name: optimistic[name] - pessimistic[name] for name in (*RECALLS, "rsum")}


def bootstrap_recalls(folds: Sequence[Ranks], replicates: int, seed: int) -> dict[str, np.ndarray]:
    """`replicates` values of each recall, of rsum and of mean_r1, from images drawn with replacement within each fold.

    Drawing an image draws all its captions, so that both directions and their sum come from the same draw and the
    captions of one image are not taken to be independent. The same seed draws the same images for every method tested
    on them. Raises ValueError for fewer than one replicate.

    Example:
        >>> owner = np.arange(4)  # one caption for each of four images
        >>> ranks = Ranks(*[np.array([1, 7, 2, 1])] * 4, owner, owner)
        >>> draws = bootstrap_recalls([ranks], replicates=1000, seed=0)
        >>> percentile_interval(draws["i2t_r1"])
        (0.0, 100.0)
    """
    if replicates < 1:
        raise ValueError(f"{replicates} bootstrap replicates asked for; expected at least 1")
    generator = np.random.default_rng(seed)
    replicated = [fold_replicates(ranks, replicates, generator) for ranks in folds]
    recalls = dict(zip(RECALLS, np.mean(replicated, axis=0).T, strict=True))
    return recalls | summaries(recalls)


def fold_replicates(ranks: Ranks, replicates: int, generator: np.random.Generator) -> np.ndarray:
    """Recalls [replicates, 6] of one fold in percent, in the order of `RECALLS`."""
    images = len(ranks.query_image)
    image = np.searchsorted(ranks.query_image, ranks.caption_image)
    captions = np.bincount(image, minlength=images)
    found_images = [ranks.image_to_text <= k for k in CUTOFFS]
    found_captions = [np.bincount(image, weights=ranks.text_to_image <= k, minlength=images) for k in CUTOFFS]
    table = np.stack([np.ones(images), captions, *found_images, *found_captions], axis=1)  # [images, 8]
    sums = resampled_sums(table, replicates, generator)
    return 100 * np.concatenate([sums[:, 2:5] / sums[:, :1], sums[:, 5:] / sums[:, 1:2]], axis=1)


def resampled_sums(table: np.ndarray, replicates: int, generator: np.random.Generator) -> np.ndarray:
    """Sums [replicates, C] over the rows of a table [images, C], the rows drawn with replacement each time."""
    images, columns = table.shape
    sums = np.empty((replicates, columns))
    for replicate in range(replicates):
        times_drawn = np.bincount(generator.integers(images, size=images), minlength=images)
        sums[replicate] = times_drawn @ table
    return sums


def percentile_interval(values: np.ndarray) -> tuple[float, float]:
    """The central 95 % interval (low, high) of bootstrap values [replicates]."""
    tail = (100 - LEVEL) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


class Difference(NamedTuple):
    """Second minus first, in points of recall, with its 95 % interval."""

    value: float
    low: float
    high: float


def paired_difference(
    first: Sequence[Ranks], second: Sequence[Ranks], replicates: int = 1000, seed: int = 0
) -> dict[str, Difference]:
    """How much better the second method is than the first on the same queries: six recalls, rsum and mean_r1.

    The bootstrap draws the same images for both, so that what is easy or hard for both cancels out. An interval without
    0 is a difference beyond the choice of test images (it says nothing about another training seed). Raises ValueError
    if the two were not computed for the same images and captions in the same order.

    Example:
        >>> owner = np.arange(4)  # one caption for each of four images
        >>> first, second = (Ranks(*[np.array(ranks)] * 4, owner, owner) for ranks in ([1, 7, 2, 1], [1, 1, 2, 1]))
        >>> paired_difference([first], [second])["i2t_r1"].value
        25.0
    """
    return paired_difference_of_runs([first], [second], replicates, seed)


def paired_difference_of_runs(
    first: Sequence[Sequence[Ranks]], second: Sequence[Sequence[Ranks]], replicates: int = 1000, seed: int = 0
) -> dict[str, Difference]:
    """`paired_difference` of the means over several training runs of each method; all runs share the draws."""
    for folds in (*first[1:], *second):
        same = len(first[0]) == len(folds) and all(
            np.array_equal(a.query_image, b.query_image) and np.array_equal(a.caption_image, b.caption_image)
            for a, b in zip(first[0], folds, strict=True)
        )
        if not same:
            raise ValueError(
                "the two results are not of the same queries (folds, photos or captions differ); evaluate both methods "
                "with the same protocol on the same split"
            )
    (before, draws_before), (after, draws_after) = (
        (
            _mean([mean_metrics(folds) for folds in runs]),
            _mean([bootstrap_recalls(folds, replicates, seed) for folds in runs]),
        )
        for runs in (first, second)
    )
    return {
        name: Difference(
            float(after[name] - before[name]), *percentile_interval(draws_after[name] - draws_before[name])
        )
        for name in draws_before
    }


def _mean(runs: Sequence[dict]) -> dict:
    return {name: np.mean([run[name] for run in runs], axis=0) for name in runs[0]}
