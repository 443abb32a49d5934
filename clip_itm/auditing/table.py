"""Which captions are suspicious, how many are wrong, and how well that agrees with the truth where it is known."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clip_itm.auditing.estimate import Estimate
from clip_itm.auditing.groups import EMPTY, Group, groups_of, kinds_of_pairs
from clip_itm.auditing.marked import by_marks, is_enough
from clip_itm.auditing.photos import Photos, similar_photos
from clip_itm.auditing.sampling import THRESHOLD
from clip_itm.auditing.suggested import Suggested, suggested
from clip_itm.auditing.suspects import Suspects
from clip_itm.auditing.words import words_of_marks
from clip_itm.auditing.written import write_formats
from clip_itm.calibration.share import BLIND
from clip_itm.calibration.words import share_in_words
from clip_itm.data.configuration import DataSection
from clip_itm.data.images import image_paths
from clip_itm.data.marked_pairs import MarkedPairs
from clip_itm.data.marks import Mark, pair_hashes
from clip_itm.data.noise import CaptionNoise
from clip_itm.data.rows import Split
from clip_itm.evaluation.detection import auc, precision_at
from clip_itm.files import replacing
from clip_itm.training.clean_probability import CleanProbability, wrong_pairs_found
from clip_itm.training.encode import Embeddings
from clip_itm.visible import counted

TOP = 500


@dataclass(frozen=True, eq=False)
class Audit:
    """Pairs of a data set, how likely each of them is right, and by what.

    `title`: the run, or the data. `model`: who judged. `source`: the kind of data. `splits`: all of the data, `name`:
    the one that was judged, `noise`: which captions its pairs have. `estimate`: all scores; `clean`: the default one as
    probabilities. `is_trained`: whether the probabilities come from a model that was trained on these very pairs.
    `run`: the folder of a run that was audited; `recipe_sha256`: the hash of its recipe. `marked`: what people said
    about pairs, which `estimate` and `clean` then include; `judged`: `clean` without marks (see `unmarked`).
    `embeddings`: of the split under the model, if it compares two vectors. `cache_folder`: of the data, where hashes of
    photos are kept. `top`: for how many of the worst pairs something is suggested. `data`: the section by which the
    splits were read, if they were not in memory.

    Groups, suggestions and `table`, which has both, are made when they are asked for.
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
    marked: MarkedPairs | None = None
    judged: CleanProbability | None = None
    embeddings: Embeddings | None = None
    cache_folder: Path | None = None
    top: int = TOP
    data: DataSection | None = None

    @property
    def split(self) -> Split:
        return self.splits[self.name]

    def with_marks(self, marks: Iterable[Mark]) -> "Audit":
        """The audit with these marks (oldest first), which replace its earlier ones."""
        marked = MarkedPairs.of(self.split.pairs, self.noise, marks)
        believed = not (self.is_trained or self.estimate.is_weak)
        clean, (share, low, high) = by_marks(self.unmarked, marked, believed=believed)
        found = replace(self.estimate, share=share, low=low, high=high)
        return replace(self, estimate=found, clean=clean, marked=marked, judged=self.unmarked)

    @property
    def unmarked(self) -> CleanProbability:
        """Probabilities and share as judged, whatever was marked; a random sample is drawn from these."""
        return self.judged or self.clean

    @property
    def is_by_marks(self) -> bool:
        """Whether marks of a random sample tell how many are wrong."""
        return self.marked is not None and is_enough(self.marked)

    @property
    def is_lower_bound(self) -> bool:
        """Whether the share is a lower bound: the model was trained on the pairs, and no marks correct it."""
        return self.is_trained and not self.is_by_marks

    @cached_property
    def known_wrong(self) -> np.ndarray | None:
        """bool [N]: the caption was written for another image; None if no noise was drawn, so that nobody knows."""
        truth = self.noise.truth(self.split.pairs)
        return None if truth is None else ~truth

    @cached_property
    def suspects(self) -> int:
        """How many pairs have a probability below the threshold."""
        return int((self.clean.values < THRESHOLD).sum())

    @cached_property
    def doubted(self) -> int:
        """How many pairs are not certainly right: 0 if no wrong captions were found."""
        if self.estimate.share == 0:
            return 0
        return int((self.clean.values < 1).sum()) or len(self.clean.values)  # a blind judge believes all of them

    @property
    def is_blind(self) -> bool:
        """Whether the model cannot tell pairs from mismatches, or nearly all captions are wrong."""
        return self.estimate.high >= BLIND

    @cached_property
    def found(self) -> dict[str, float | int] | None:
        """`wrong`, `auc` and `precision` as in `wrong_pairs_found`; None if the truth is not known."""
        return wrong_pairs_found(self.clean, self.known_wrong)

    @property
    def share(self) -> tuple[float, float, float]:
        """The share of wrong captions with the ends of its 95 % interval; 0 if no random mismatches were found."""
        return self.estimate.share, self.estimate.low, self.estimate.high

    @property
    def most(self) -> float:
        """The largest share that may be wrong: the upper end of the interval, unless the share is a lower bound."""
        return 1.0 if self.is_lower_bound else self.estimate.high

    @property
    def sentence(self) -> str:
        """How many captions are wrong, in words."""
        if self.marked is None or not self.is_by_marks:
            return self.sentence_without_marks
        return f"{share_in_words(self.share)}, by {counted(self.marked.sampled.sum(), 'mark')} of a random sample"

    @property
    def sentence_without_marks(self) -> str:
        """How many captions are wrong as judged, whatever was marked."""
        is_weak, judged = self.estimate.is_weak, self.unmarked.share or self.share
        share = judged if is_weak or self.is_by_marks else self.share
        has_seen_few = share[0] == 0 and share[2] >= BLIND
        return share_in_words(share, is_weak=is_weak or has_seen_few, is_lower_bound=self.is_trained)

    @property
    def marks_in_words(self) -> str:
        """What was marked, how and by whom; "" without marks."""
        return "" if self.marked is None else words_of_marks(self.marked, self.is_by_marks)

    @cached_property
    def worst(self) -> dict[str, np.ndarray]:
        """For every score, bool [N]: the pair is among the most suspicious; as many are as there are wrong ones."""
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
        """For every score: whether it is calibrated, how far it agrees with the default one, and how well it does.

        `agreement`: the fraction of the default score's worst pairs among its own worst. `auc`, `precision`, `ece`: if
        the truth is known.
        """
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
    def captions(self) -> list[str]:
        """[N], of the pairs, as `noise` gave them."""
        return self.noise.apply(self.split.pairs).to_pylist()

    @cached_property
    def photos(self) -> Photos:
        """The photos of all splits, those of the judged split first."""
        return Photos.of(self.splits, self.name)

    @cached_property
    def groups(self) -> list[Group]:
        """Groups of pairs: leaks, captions without content, copies of photos, photos nearly the same to the model.

        The first call decodes all photos of all splits and keeps their hashes.
        """
        folder = None if self.cache_folder is None else self.cache_folder / "hashes"
        copies = self.photos.copies(folder)
        compared = self.embeddings is not None and len(self.photos) > 0  # regions are no photos to look at
        similar = similar_photos(self.embeddings.images, copies) if compared else []
        return groups_of(self.captions, self.split.pairs.image, copies, self.photos.names, similar_groups=similar)

    @cached_property
    def suggestions(self) -> dict[int, Suggested]:
        """What would be right, by number of the pair, for the `top` most suspicious ones that are not certainly right.

        Empty if the model compares more than two vectors. Captions without content are not suggested, and no photos
        are suggested for them.
        """
        if self.embeddings is None:
            return {}
        pairs, has_content = self.split.pairs, np.ones(len(self.captions), dtype=bool)
        for group in self.groups:
            if group.kind in EMPTY:
                has_content[group.pairs] = False
        return suggested(
            self.clean.order()[: min(self.top, self.doubted)],
            self.embeddings.images,
            self.embeddings.texts[self.noise.source],
            pairs.image,
            self.captions,
            pairs.image_ids.to_pylist(),
            self.clean.values >= THRESHOLD,
            has_content,
        )

    @cached_property
    def table(self) -> pa.Table:
        """`scored` with `groups`, the kinds of groups that a pair is in, and with the caption that is proposed first.

        That is `suggestion` with its `suggestion_p`; both are null if none is proposed.
        """
        answers = [found.proposed for found in self.suggestions.values()]  # of the first rows, in this order
        answers += [None] * (len(self.captions) - len(answers))
        kinds = kinds_of_pairs(self.groups, len(self.captions)).take(pa.array(self.clean.order()))
        return (
            self.scored.append_column("groups", kinds)
            .append_column("suggestion", pa.array([answer and answer.text for answer in answers], pa.string()))
            .append_column("suggestion_p", pa.array([answer and answer.p for answer in answers], pa.float32()))
        )

    @cached_property
    def scored(self) -> pa.Table:
        """All pairs, most suspicious first; `rank` counts from 1. `image` is null for images stored in the data set."""
        pairs, order = self.split.pairs, self.clean.order()
        image, source = pairs.image[order], pa.array(self.noise.source[order])
        wrong = self.known_wrong
        image_ids, captions = pairs.image_ids.take(pa.array(image)), pairs.captions.take(source)
        columns = {
            "pair": order,
            "pair_hash": pair_hashes(image_ids.to_pylist(), captions.to_pylist()),
            "image_id": image_ids,
            "image": pa.array(image_paths(self.split.rows), pa.string()).take(pa.array(image)),
            "caption_id": pairs.caption_ids.take(source),
            "caption": captions,
            "clean_probability": self.clean.values[order],
            "rank": np.arange(1, len(order) + 1),
            "judged_probability": self.unmarked.values[order],
            "judged_rank": np.argsort(self.unmarked.order())[order] + 1,
            "method": pa.repeat(self.clean.method, len(order)),
            "trained_on": pa.repeat(self.is_trained, len(order)),
            "known_wrong": pa.nulls(len(order), pa.bool_()) if wrong is None else wrong[order],
            "doubted_by": sum(worst.astype(np.int64) for worst in self.worst.values())[order],
            **self._marks(order),
        }
        for name, score in self.estimate.scores.items():
            columns[f"score_{name}"] = pa.array(score.suspicion[order].astype(np.float32), from_pandas=True)
            if score.probability is not None:
                columns[f"probability_{name}"] = pa.array(score.probability[order].astype(np.float32), from_pandas=True)
        made_from = {"recipe_sha256": self.recipe_sha256, "noise_sha256": self.noise.sha256, "split": self.name}
        if self.data is not None:
            made_from["data"] = self.data.model_dump_json()
        return pa.table(columns).replace_schema_metadata(made_from)

    def _marks(self, order: np.ndarray) -> dict[str, pa.Array]:
        """Columns of the table: what was said about pairs, in this order; null for the others."""
        place, marks = np.full(len(order), -1), [] if self.marked is None else self.marked.marks
        if self.marked is not None:
            place[self.marked.pair] = np.arange(len(marks))
        rows = pa.array(place[order], mask=place[order] < 0)
        said = {"mark": [mark.mark for mark in marks], "marked_text": [mark.text for mark in marks]}
        return {name: pa.array(values, pa.string()).take(rows) for name, values in said.items()}

    def head(self, n: int = 10) -> "Suspects":
        """The `n` most suspicious pairs, as rows of `scored`; none that is certainly right.

        >>> for row in audit("runs/products").head(20):
        ...     print(row["clean_probability"], row["image"], row["caption"])
        """
        return Suspects(self.scored.slice(0, min(n, self.doubted)).to_pylist())

    def save(self, path: Path) -> None:
        with replacing(path) as temporary:
            pq.write_table(self.table, temporary)

    def write(self, *formats: str, folder: str | Path = "audit") -> dict[str, Path]:
        """The table in formats of other programs, into `folder`: "csv", "label-studio", "fiftyone" (`written.py`).

        Returns the file or folder of each. Raises ValueError if a file that no audit wrote is in the way.

        >>> audit("photos", "openai/clip-vit-base-patch32").write("csv", "label-studio")
        """
        table = self.table
        image = self.split.pairs.image[table["pair"].to_numpy()]
        settings = {"threshold": THRESHOLD, "judge": self.model}
        return write_formats(Path(folder), formats, table, image, self.split.rows, **settings)
