"""Which captions of a finished run are suspicious, and how well that agrees with the truth where it is known."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table
from rich.text import Text

from clip_itm.auditing.estimate import clean_probability_of_run
from clip_itm.checksums import check_files
from clip_itm.data.images import image_paths
from clip_itm.data.load import load_splits
from clip_itm.data.noise import CaptionNoise
from clip_itm.data.rows import Split
from clip_itm.distributed import process_state
from clip_itm.evaluation.report import as_text
from clip_itm.files import replacing
from clip_itm.recipe import Recipe
from clip_itm.runs.folder import RunFolder
from clip_itm.training.clean_probability import CleanProbability, wrong_pairs_found
from clip_itm.visible import visible

if TYPE_CHECKING:
    from clip_itm.runs.trainer import ItmTrainer

TABLE, PAGE = "audit.parquet", "audit.html"
THRESHOLD = 0.5  # a caption below it is more likely wrong than right


@dataclass(frozen=True, eq=False)
class Audit:
    """A finished run, the pairs that it was trained on, and how likely each of them is right.

    `recipe_sha256` is that of the run; `recipe` may differ from it in where the data are now.
    """

    run: Path
    recipe: Recipe
    recipe_sha256: str
    splits: dict[str, Split]
    noise: CaptionNoise
    clean: CleanProbability

    @classmethod
    def of_run(cls, folder: Path, overrides: Sequence[str] = ()) -> "Audit":
        """Raises ValueError for a folder without a finished run, and for data that are not those of the run."""
        run = RunFolder(folder)
        recipe = run.recipe(overrides)
        run.require_finished()
        with process_state().main_process_first():
            splits = load_splits(recipe.data)
        check_files(folder, ("provenance.json",))
        began = run.provenance()
        if "train" not in splits or splits["train"].sha256 != began["splits"]["train"]["sha256"]:
            raise ValueError(
                f"{folder}: the training split is another one than the run was trained on; restore the data, or say "
                "where they are now (such as --data.root FOLDER)"
            )
        noise = CaptionNoise.load(run.noise_file)
        if noise.sha256 != began["noise"]["sha256"]:
            raise ValueError(f"{run.noise_file} is that of another run; restore it from {run.model}")
        clean = clean_probability_of_run(folder, recipe, splits["train"], noise)
        return cls(folder, recipe, began["recipe_sha256"], splits, noise, clean)

    @property
    def train(self) -> Split:
        return self.splits["train"]

    @cached_property
    def known_wrong(self) -> np.ndarray | None:
        """bool [N]: the caption was written for another image; None where no noise was drawn, so that nobody knows."""
        truth = self.noise.truth(self.train.pairs)
        return None if truth is None else ~truth

    @cached_property
    def suspects(self) -> int:
        """How many pairs have a probability below the threshold."""
        return int((self.clean.values < THRESHOLD).sum())

    @cached_property
    def found(self) -> dict[str, float | int] | None:
        """`wrong`, `auc` and `precision` as in `wrong_pairs_found`; None where the truth is not known."""
        return wrong_pairs_found(self.clean, self.known_wrong)

    @cached_property
    def table(self) -> pa.Table:
        """All pairs, most suspicious first; `rank` counts from 1. `image` is null for images stored in the data set."""
        pairs, order = self.train.pairs, self.clean.order()
        image, source = pairs.image[order], pa.array(self.noise.source[order])
        wrong = self.known_wrong
        columns = {
            "pair": order,
            "image_id": pairs.image_ids.take(pa.array(image)),
            "image": pa.array(image_paths(self.train.rows), pa.string()).take(pa.array(image)),
            "caption_id": pairs.caption_ids.take(source),
            "caption": pairs.captions.take(source),
            "clean_probability": self.clean.values[order],
            "rank": np.arange(1, len(order) + 1),
            "method": pa.repeat(self.clean.method, len(order)),
            "known_wrong": pa.nulls(len(order), pa.bool_()) if wrong is None else wrong[order],
        }
        made_from = {"recipe_sha256": self.recipe_sha256, "noise_sha256": self.noise.sha256}
        return pa.table(columns).replace_schema_metadata(made_from)

    def head(self, n: int = 10) -> "Suspects":
        """The `n` most suspicious pairs, as rows of `table`.

        >>> for row in audit("runs/products").head(20):
        ...     print(row["clean_probability"], row["image"], row["caption"])
        """
        return Suspects(self.table.slice(0, n).to_pylist())

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


def audit(run: "ItmTrainer | str | Path", *overrides: str) -> Audit:
    """Which captions of a finished run are probably wrong: all its training pairs by how suspicious they are.

    run: a trainer that has trained, or the folder of a run. overrides: keys of its recipe where the data have moved,
    such as "--data.root", "FOLDER". Of methods that do not estimate it while they train, it is estimated from the
    losses of the best model. Raises ValueError for a run that is not finished, and for other data.

    >>> print(audit(trainer).head(20))
    """
    return Audit.of_run(Path(run) if isinstance(run, str | Path) else run.run.path, overrides)


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
