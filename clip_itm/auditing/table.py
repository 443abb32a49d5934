"""Which captions are suspicious, how many are wrong, and how well that agrees with the truth where it is known."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table
from rich.text import Text

from clip_itm.auditing.estimate import Estimate
from clip_itm.calibration.share import BLIND
from clip_itm.data.images import image_paths
from clip_itm.data.noise import CaptionNoise
from clip_itm.data.rows import Split
from clip_itm.evaluation.detection import auc, precision_at
from clip_itm.evaluation.report import as_text
from clip_itm.files import replacing
from clip_itm.training.clean_probability import CleanProbability, wrong_pairs_found
from clip_itm.visible import visible

TABLE, PAGE = "audit.parquet", "audit.html"
THRESHOLD = 0.5  # a caption below it is more likely wrong than right
BLIND_ADVICE = "either nearly all captions are wrong, or the model cannot tell pairs from mismatches"
TRAINED = (
    "the model was trained on these pairs: wrong ones that it has learned by heart look right, so that the share is a "
    "lower bound and probabilities are too high"
)
ADVICE = "a model that has not seen them judges better: --model OTHER, or a run with head.kind crossfit"


@dataclass(frozen=True, eq=False)
class Audit:
    """Pairs of a data set, how likely each of them is right, and by what.

    `title`: the run, or the data. `model`: who judged. `source`: of which kind the data are. `splits`: all of the data,
    `name`: the one that was judged, `noise`: which captions its pairs have. `estimate`: all scores; `clean`: the
    default one as probabilities. `is_trained`: whether the probabilities come from a model that was trained on these
    very pairs. `run`: the folder of a run that was audited; `recipe_sha256`: the hash of its recipe.
    """

    title: str
    model: str
    source: str
    splits: Mapping[str, Split]
    name: str
    noise: CaptionNoise
    estimate: Estimate
    clean: CleanProbability
    is_trained: bool = False
    run: Path | None = None
    recipe_sha256: str = ""

    @property
    def split(self) -> Split:
        return self.splits[self.name]

    @cached_property
    def known_wrong(self) -> np.ndarray | None:
        """bool [N]: the caption was written for another image; None where no noise was drawn, so that nobody knows."""
        truth = self.noise.truth(self.split.pairs)
        return None if truth is None else ~truth

    @cached_property
    def suspects(self) -> int:
        """How many pairs have a probability below the threshold."""
        return int((self.clean.values < THRESHOLD).sum())

    @cached_property
    def doubted(self) -> int:
        """How many pairs are not certainly right: 0 where no wrong captions were found."""
        if self.estimate.share == 0:
            return 0
        return int((self.clean.values < 1).sum()) or len(self.clean.values)  # a blind judge believes all of them

    @property
    def is_blind(self) -> bool:
        """Whether the model cannot tell pairs from mismatches, or nearly all captions are wrong."""
        return self.estimate.high >= BLIND

    @cached_property
    def found(self) -> dict[str, float | int] | None:
        """`wrong`, `auc` and `precision` as in `wrong_pairs_found`; None where the truth is not known."""
        return wrong_pairs_found(self.clean, self.known_wrong)

    @property
    def share(self) -> tuple[float, float, float]:
        """Of captions that are wrong, with the ends of its 95 % interval; 0 where no random mismatches were found."""
        return self.estimate.share, self.estimate.low, self.estimate.high

    @property
    def most(self) -> float:
        """The largest share that may be wrong: the upper end of the interval, unless the share is a lower bound."""
        return 1.0 if self.is_trained else self.estimate.high

    @property
    def sentence(self) -> str:
        """How many captions are wrong, in words."""
        share, low, high = (f"{100 * part:.1f}" for part in self.share)
        if self.estimate.share == 0:
            return f"no wrong captions found (0 to {high} %)"
        if self.is_trained:
            return f"at least {share} %"
        return f"{share} % ({low} to {high} %)"

    @cached_property
    def worst(self) -> dict[str, np.ndarray]:
        """For every score bool [N]: the pair is among the most suspicious, as many as there are wrong ones."""
        count = round(self.estimate.share * len(self.clean.values))
        found = {}
        for name, score in self.estimate.scores.items():
            order = np.argsort(-np.nan_to_num(score.suspicion, nan=-np.inf), kind="stable")
            if name == self.estimate.default:
                order = self.clean.order()
            found[name] = np.zeros(len(order), dtype=bool)
            found[name][order[:count]] = True
        return found

    def figures(self) -> list[dict[str, Any]]:
        """For every score: whether it is calibrated, how many of the worst pairs of the default score it has among its
        own, and `auc`, `precision`, `ece` where the truth is known."""
        rows, wrong = [], self.known_wrong
        default = self.worst[self.estimate.default]
        for name, score in self.estimate.scores.items():
            known = ~np.isnan(score.suspicion)
            row: dict[str, Any] = {"score": name, "calibrated": score.probability is not None}
            row["agreement"] = float(self.worst[name][default].mean()) if default.any() else None
            if name == self.estimate.default:
                row |= self.found or {}
            elif wrong is not None and wrong[known].any():
                suspicion, positive = score.suspicion[known], wrong[known]
                row["auc"] = auc(suspicion, positive)
                row["precision"] = precision_at(suspicion, positive, int(positive.sum()))
                if score.probability is not None:
                    clean = CleanProbability(score.probability[known], -suspicion, "", "")
                    row["ece"] = (wrong_pairs_found(clean, positive) or {})["ece"]
            rows.append(row)
        return rows

    @cached_property
    def table(self) -> pa.Table:
        """All pairs, most suspicious first; `rank` counts from 1. `image` is null for images stored in the data set."""
        pairs, order = self.split.pairs, self.clean.order()
        image, source = pairs.image[order], pa.array(self.noise.source[order])
        wrong = self.known_wrong
        columns = {
            "pair": order,
            "image_id": pairs.image_ids.take(pa.array(image)),
            "image": pa.array(image_paths(self.split.rows), pa.string()).take(pa.array(image)),
            "caption_id": pairs.caption_ids.take(source),
            "caption": pairs.captions.take(source),
            "clean_probability": self.clean.values[order],
            "rank": np.arange(1, len(order) + 1),
            "method": pa.repeat(self.clean.method, len(order)),
            "trained_on": pa.repeat(self.is_trained, len(order)),
            "known_wrong": pa.nulls(len(order), pa.bool_()) if wrong is None else wrong[order],
            "doubted_by": sum(worst.astype(np.int64) for worst in self.worst.values())[order],
        }
        for name, score in self.estimate.scores.items():
            columns[f"score_{name}"] = pa.array(score.suspicion[order].astype(np.float32), from_pandas=True)
            if score.probability is not None:
                columns[f"probability_{name}"] = pa.array(score.probability[order].astype(np.float32), from_pandas=True)
        made_from = {"recipe_sha256": self.recipe_sha256, "noise_sha256": self.noise.sha256}
        return pa.table(columns).replace_schema_metadata(made_from)

    def head(self, n: int = 10) -> "Suspects":
        """The `n` most suspicious pairs, as rows of `table`; none that is certainly right.

        >>> for row in audit("runs/products").head(20):
        ...     print(row["clean_probability"], row["image"], row["caption"])
        """
        return Suspects(self.table.slice(0, min(n, self.doubted)).to_pylist())

    def save(self, path: Path) -> None:
        with replacing(path) as temporary:
            pq.write_table(self.table, temporary)


class Suspects(list[dict[str, Any]]):
    """Rows of an audit, as dicts; printed, a table."""

    def __str__(self) -> str:
        table = Table()
        for name in ("rank", "clean probability", "photo", "caption", "known to be wrong"):
            table.add_column(name, overflow="fold")
        for row in self:
            wrong = {None: "", True: "yes", False: "no"}[row["known_wrong"]]
            place = row["image"] or row["image_id"]
            cells = (row["rank"], f"{row['clean_probability']:.3f}", place, row["caption"], wrong)
            table.add_row(*(Text(visible(str(value))) for value in cells))
        return as_text(table)

    __repr__ = __str__


def require_audit(out: Path) -> None:
    """ValueError where an audit would replace files of its names that no audit wrote."""
    taken = [path for path in (out / TABLE, out / PAGE) if path.is_file()]
    if taken and not _is_audit(out / TABLE):
        raise ValueError(
            f"{taken[0]} was written by no audit of clip-itm: move it away, or name another folder (--out)"
        )


def _is_audit(table: Path) -> bool:
    try:
        return b"recipe_sha256" in pq.read_schema(table).metadata
    except (pa.ArrowException, OSError, TypeError):
        return False
