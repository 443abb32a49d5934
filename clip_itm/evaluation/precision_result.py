"""mAP@R and R-Precision of ECCV Caption (Chun et al. 2022, section 4.1), from the ranks of all right answers.

Of a query with R right answers, the j-th of which (best first) has rank r_j:

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
    """R@1, AP@R and R-Precision [Q, 3] in [0, 1] of ascending ranks [Q, R] of the right answers, `total` [Q]."""
    nth = np.arange(1, ranks.shape[1] + 1)
    found = ranks <= total[:, None]
    return np.stack(
        [ranks[:, 0] == 1, np.where(found, nth / ranks, 0).sum(axis=1) / total, found.sum(axis=1) / total], axis=1
    )


def precision_metrics(both: Sequence[PositiveRanks], pessimistic: bool = False) -> dict[str, float]:
    """`i2t_r1`, `i2t_map_at_r`, `i2t_rprecision`, `t2i_...` in percent, of both directions."""
    means = [
        query_precisions(each.pessimistic if pessimistic else each.ranks, each.total).mean(axis=0) for each in both
    ]
    return dict(zip(PRECISIONS, (100 * np.concatenate(means)).tolist(), strict=True))


def bootstrap_precisions(both: Sequence[PositiveRanks], replicates: int, seed: int) -> dict[str, np.ndarray]:
    """`replicates` values of each metric, from images drawn with replacement, as `bootstrap_recalls` draws them.

    An image brings its query and the queries among its captions along.
    """
    images = np.unique(np.concatenate([each.image for each in both]))
    table = np.zeros((len(images), 2, 1 + len(NAMES)))  # of each direction the number of queries, and their sums
    for direction, each in enumerate(both):
        values = np.concatenate([np.ones((len(each.image), 1)), query_precisions(each.ranks, each.total)], axis=1)
        np.add.at(table[:, direction], np.searchsorted(images, each.image), values)
    sums = resampled_sums(table.reshape(len(images), -1), replicates, np.random.default_rng(seed))
    sums = sums.reshape(replicates, 2, -1)
    means = 100 * sums[:, :, 1:] / sums[:, :, :1]
    return dict(zip(PRECISIONS, means.reshape(replicates, -1).T, strict=True))


@dataclass(frozen=True, eq=False)
class PrecisionResult:
    """What `RetrievalResult` is to ranks of best answers: metrics, intervals and tie gaps from those of all answers."""

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
        """Plain JSON: everything but the ranks; `images` and `captions` are the queries."""
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
        """The ranks of all right answers as a compressed `.npz`, from which `load` makes the same result again."""
        arrays = {
            f"{direction}_{field.name}": getattr(getattr(self, direction), field.name)
            for direction in ("image_to_text", "text_to_image")
            for field in fields(PositiveRanks)
        }
        save_arrays(path, protocol=self.protocol, bootstrap=(self.replicates, self.seed), **arrays)

    @classmethod
    def load(cls, path: str | Path) -> "PrecisionResult":
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
