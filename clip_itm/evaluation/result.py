"""What an evaluation under one protocol gives: numbers for tables, ranks for plots and paired tests."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from clip_itm.evaluation.ranking import Ranks
from clip_itm.evaluation.recall import (
    LEVEL,
    bootstrap_recalls,
    mean_metrics,
    percentile_interval,
    recall_metrics,
    tie_gaps,
)
from clip_itm.files import reading_arrays, save_arrays


@dataclass(frozen=True, eq=False)
class RetrievalResult:
    """Metrics (names as in `recall_metrics`), 95 % intervals, and how much of each recall depends on ties.

    `folds` holds the ranks of every query, one `Ranks` per fold; image indices in it start at 0 in every fold.
    `replicates` is the size of the bootstrap (0: no intervals), `seed` its seed.
    """

    protocol: str
    folds: tuple[Ranks, ...]
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    tie_gap: dict[str, float]
    replicates: int
    seed: int

    @classmethod
    def from_ranks(cls, protocol: str, folds: Sequence[Ranks], replicates: int = 1000, seed: int = 0):
        """The result of the ranks of all folds under the protocol of this name."""
        draws = bootstrap_recalls(folds, replicates, seed) if replicates else {}
        return cls(
            protocol=protocol,
            folds=tuple(folds),
            metrics=mean_metrics(folds),
            intervals={name: percentile_interval(values) for name, values in draws.items()},
            tie_gap=tie_gaps(folds),
            replicates=replicates,
            seed=seed,
        )

    @property
    def num_images(self) -> int:
        """Number of images that are queries, over all folds."""
        return sum(len(ranks.query_image) for ranks in self.folds)

    @property
    def num_captions(self) -> int:
        """Number of captions, over all folds."""
        return sum(len(ranks.caption_image) for ranks in self.folds)

    def as_dict(self) -> dict:
        """Everything but the ranks, as plain JSON; with several folds also the metrics of each."""
        return {
            "protocol": self.protocol,
            "images": self.num_images,
            "captions": self.num_captions,
            "metrics": self.metrics,
            "intervals": {name: list(interval) for name, interval in self.intervals.items()},
            "tie_gap": self.tie_gap,
            "folds": [recall_metrics(ranks) for ranks in self.folds] if len(self.folds) > 1 else [],
            "bootstrap": {"replicates": self.replicates, "seed": self.seed, "level": LEVEL},
        }

    def save(self, path: str | Path) -> None:
        """Write the ranks of every query as a compressed `.npz`, from which `load` makes the same result again.

        Example:
            >>> import tempfile, torch
            >>> from clip_itm.evaluation.protocols import evaluate_retrieval
            >>> result = evaluate_retrieval(torch.eye(3), torch.eye(3), torch.arange(3))["all"]
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     result.save(f"{folder}/ranks.npz")
            ...     RetrievalResult.load(f"{folder}/ranks.npz").as_dict() == result.as_dict()
            True
        """
        arrays = {
            f"fold{index}_{field.name}": getattr(ranks, field.name)
            for index, ranks in enumerate(self.folds)
            for field in fields(Ranks)
        }
        bootstrap = (self.replicates, self.seed)
        save_arrays(path, protocol=self.protocol, folds=len(self.folds), bootstrap=bootstrap, **arrays)

    @classmethod
    def load(cls, path: str | Path) -> "RetrievalResult":
        """The result that `save` wrote; ValueError for a file that is missing, damaged or holds anything else."""
        wrong = f"{path} holds no ranks ({{error}}); evaluate again"
        with reading_arrays(path, f"{path}: there is no such file", wrong) as saved:
            missing = {"protocol", "folds", "bootstrap"} - set(saved)
            if missing:
                raise ValueError(
                    f"{path} holds no ranks ({', '.join(sorted(missing))} missing); expected a saved result"
                )
            replicates, seed = saved["bootstrap"].tolist()
            folds = [
                Ranks(**{field.name: saved[f"fold{index}_{field.name}"] for field in fields(Ranks)})
                for index in range(int(saved["folds"]))
            ]
            return cls.from_ranks(str(saved["protocol"]), folds, replicates, seed)
