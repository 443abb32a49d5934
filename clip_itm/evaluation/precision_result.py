"""mAP@R and R-Precision of ECCV Caption (Chun et al. 2022, section 4.1), from the ranks of all right answers.

For a query with R right answers, where r_j is the rank of the j-th of them (best first):

    R-Precision = #{j: r_j <= R} / R            AP@R = sum over r_j <= R of (j / r_j) / R            mAP@R = its mean
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from clip_itm.evaluation.judged_ranking import PositiveRanks
from clip_itm.evaluation.recall import LEVEL, percentile_interval, resampled_sums
from clip_itm.files import reading_arrays, save_arrays

NAMES = ("r1", "map_at_r", "rprecision")
PRECISIONS = tuple(f"{direction}_{name}" for direction in ("i2t", "t2i") for name in NAMES)


def query_precisions(ranks: np.ndarray, total: np.ndarray) -> np.ndarray:
    """R@1, AP@R and R-Precision, [Q, 3] in [0, 1], from `ranks` and `total` of `PositiveRanks`.

    Example:
        >>> query_precisions(np.array([[1, 3]]), np.array([2])).tolist()  # two right answers, at ranks 1 and 3
        [[1.0, 0.5, 0.5]]
    """
    nth = np.arange(1, ranks.shape[1] + 1)
    found = ranks <= total[:, None]
    return np.stack(
        [ranks[:, 0] == 1, np.where(found, nth / ranks, 0).sum(axis=1) / total, found.sum(axis=1) / total], axis=1
    )


def precision_metrics(both: Sequence[PositiveRanks], pessimistic: bool = False) -> dict[str, float]:
    """`i2t_r1`, `i2t_map_at_r`, `i2t_rprecision` and the same for `t2i`, in percent.

    `both` holds the ranks from image to text and from text to image.
    """
    means = [
        query_precisions(each.pessimistic if pessimistic else each.ranks, each.total).mean(axis=0) for each in both
    ]
    return dict(zip(PRECISIONS, (100 * np.concatenate(means)).tolist(), strict=True))


def bootstrap_precisions(both: Sequence[PositiveRanks], replicates: int, seed: int) -> dict[str, np.ndarray]:
    """`replicates` values of each metric, from images drawn with replacement as in `bootstrap_recalls`.

    Drawing an image draws its query and those of its captions that are queries.
    """
    images = np.unique(np.concatenate([each.image for each in both]))
    table = np.zeros((len(images), 2, 1 + len(NAMES)))  # for each direction: the number of queries, and their sums
    for direction, each in enumerate(both):
        values = np.concatenate([np.ones((len(each.image), 1)), query_precisions(each.ranks, each.total)], axis=1)
        np.add.at(table[:, direction], np.searchsorted(images, each.image), values)
    sums = resampled_sums(table.reshape(len(images), -1), replicates, np.random.default_rng(seed))
    sums = sums.reshape(replicates, 2, -1)
    means = 100 * sums[:, :, 1:] / sums[:, :, :1]
    return dict(zip(PRECISIONS, means.reshape(replicates, -1).T, strict=True))


@dataclass(frozen=True, eq=False)
class PrecisionResult:
    """The counterpart of `RetrievalResult` if all right answers count: metrics in percent, 95 % intervals, tie gaps.

    `tie_gap` says how many points of each metric depend on how ties are counted; `replicates` is the size of the
    bootstrap (0: no intervals), `seed` its seed.
    """

    protocol: str
    image_to_text: PositiveRanks
    text_to_image: PositiveRanks
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    tie_gap: dict[str, float]
    replicates: int
    seed: int

    @classmethod
    def from_ranks(cls, protocol: str, both: Sequence[PositiveRanks], replicates: int = 1000, seed: int = 0):
        """The result of the ranks `both`, image to text and text to image."""
        won, lost = precision_metrics(both), precision_metrics(both, pessimistic=True)
        draws = bootstrap_precisions(both, replicates, seed) if replicates else {}
        image_to_text, text_to_image = both
        return cls(
            protocol=protocol,
            image_to_text=image_to_text,
            text_to_image=text_to_image,
            metrics=won,
            intervals={name: percentile_interval(values) for name, values in draws.items()},
            tie_gap={name: won[name] - lost[name] for name in won},
            replicates=replicates,
            seed=seed,
        )

    def as_dict(self) -> dict:
        """Everything but the ranks, as plain JSON; `images` and `captions` count the queries."""
        return {
            "protocol": self.protocol,
            "images": len(self.image_to_text.image),
            "captions": len(self.text_to_image.image),
            "metrics": self.metrics,
            "intervals": {name: list(interval) for name, interval in self.intervals.items()},
            "tie_gap": self.tie_gap,
            "folds": [],
            "bootstrap": {"replicates": self.replicates, "seed": self.seed, "level": LEVEL},
        }

    def save(self, path: str | Path) -> None:
        """Write the ranks of all right answers as a compressed `.npz`, from which `load` makes the same result."""
        arrays = {
            f"{direction}_{field.name}": getattr(getattr(self, direction), field.name)
            for direction in ("image_to_text", "text_to_image")
            for field in fields(PositiveRanks)
        }
        save_arrays(path, protocol=self.protocol, bootstrap=(self.replicates, self.seed), **arrays)

    @classmethod
    def load(cls, path: str | Path) -> "PrecisionResult":
        """The result that `save` wrote; ValueError for a file that is missing, damaged or holds anything else."""
        names = {f"{d}_{field.name}" for d in ("image_to_text", "text_to_image") for field in fields(PositiveRanks)}
        wrong = f"{path} holds no ranks ({{error}}); evaluate again"
        with reading_arrays(path, f"{path}: there is no such file", wrong) as saved:
            if missing := {"protocol", "bootstrap", *names} - set(saved):
                raise ValueError(
                    f"{path} holds no ranks of all right answers ({', '.join(sorted(missing))} missing); expected a "
                    "saved result of the protocol eccv"
                )
            both = [
                PositiveRanks(**{field.name: saved[f"{direction}_{field.name}"] for field in fields(PositiveRanks)})
                for direction in ("image_to_text", "text_to_image")
            ]
            return cls.from_ranks(str(saved["protocol"]), both, *saved["bootstrap"].tolist())
