"""What every source gives: rows (one per image), splits with a hash, and the flat index of pairs."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, Image, List, Value

if TYPE_CHECKING:
    from clip_itm.data.region_features import RegionFeatures

ROW_FEATURES = Features(
    {
        "image": Image(decode=False),
        "image_id": Value("string"),
        "captions": List(Value("string")),
        "caption_ids": List(Value("string")),
    }
)
# a split has the fifth column only if some weight is not 1
WEIGHTED_ROW_FEATURES = Features({**ROW_FEATURES, "caption_weights": List(Value("float32"))})

SPLIT_NAMES = ("train", "val", "test")
HASHED_AT_ONCE = 100_000  # strings


def image_row(file: str | Path, image_id: str, captions: list[str], caption_ids: list[str]) -> dict:
    """The row of an image in a file; captions lose surrounding white space and are otherwise left alone."""
    return {
        "image": {"path": str(file), "bytes": None},
        "image_id": image_id,
        "captions": [caption.strip() for caption in captions],
        "caption_ids": caption_ids,
    }


def hash_strings(*columns: pa.Array | pa.ChunkedArray) -> str:
    """SHA-256 over columns of strings; unambiguous, because every string is preceded by its length in bytes."""
    digest = hashlib.sha256()
    for column in columns:
        if column.null_count:
            raise ValueError("a column to be hashed has nulls")
        digest.update(f"column {len(column)}\n".encode())
        for start in range(0, len(column), HASHED_AT_ONCE):
            part = column.slice(start, HASHED_AT_ONCE).cast(pa.large_string())
            part = part.combine_chunks() if isinstance(part, pa.ChunkedArray) else part
            lengths = pc.binary_length(part).cast(pa.large_string())
            joined = pc.binary_join_element_wise(lengths, part, pa.scalar(" ", pa.large_string()))
            end = int(np.frombuffer(joined.buffers()[1], np.int64)[joined.offset + len(joined)])
            digest.update(memoryview(joined.buffers()[2])[:end])  # "LENGTH string", one after the other
    return digest.hexdigest()


class Skipped(NamedTuple):
    """An image (its file, else its id) or a caption (its id) that was left out of a split."""

    item: str
    kind: Literal["missing", "broken", "caption"]  # images that are missing or empty, or unreadable; empty captions
    reason: str


@dataclass(frozen=True)
class Split:
    """One split of a data set: its rows, and what is known about them.

    `rows` is a `datasets.Dataset` of `ROW_FEATURES` (one row per image, images not decoded). `skipped` lists what
    `skip_missing` and `skip_broken` left out. `regions` replaces the images of a data set of precomputed features.
    `missing_is_normal`: the annotations are known to name images that nobody has, which are left out instead of being
    an error. `marks`: what is known about marks that its rows include (`marked_training.py`).
    """

    name: str
    rows: Dataset
    skipped: tuple[Skipped, ...] = field(default=())
    regions: "RegionFeatures | None" = None
    missing_is_normal: bool = False
    marks: Mapping[str, int | str] = field(default_factory=dict)

    @property
    def missing(self) -> tuple[str, ...]:
        """The images that are left out because they are missing or empty."""
        return tuple(item for item, kind, _ in self.skipped if kind == "missing")

    @property
    def skipped_counts(self) -> dict[str, int]:
        """How many images were missing, how many broken, and how many captions (or images without any) empty."""
        counts = Counter(kind for _, kind, _ in self.skipped)
        return {"missing": counts["missing"], "broken": counts["broken"], "empty_captions": counts["caption"]}

    @cached_property
    def pairs(self) -> "Pairs":
        """The flat index of (image, caption) pairs."""
        return Pairs.from_rows(self.rows)

    @cached_property
    def sha256(self) -> str:
        """Hash of the image ids, caption ids and captions in order, and of weights and labels if there are any.

        It never covers pixels or paths: the same split on two machines has the same hash. For regions it covers names,
        shapes and some rows (`RegionFeatures.identity`).
        """
        pairs = self.pairs
        counts = pa.array(np.bincount(pairs.image, minlength=len(self.rows)).astype(str))
        weights = [] if pairs.weight is None else [pa.array(pairs.weight.astype(str))]
        labels = [] if pairs.label is None else [pa.array(pairs.label.astype(str))]
        regions = [] if self.regions is None else [pa.array(self.regions.identity)]
        return hash_strings(pairs.image_ids, counts, pairs.caption_ids, pairs.captions, *weights, *labels, *regions)

    def select(self, images: Sequence[int]) -> "Split":
        """The split with only the rows `images`, which must ascend."""
        rows = self.rows.select(images)
        if self.regions is None:
            return replace(self, rows=rows)
        images = np.asarray(images, dtype=np.int64)
        captions = np.flatnonzero(np.isin(self.pairs.image, images))
        return replace(self, rows=rows, regions=self.regions.select(images, captions))

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Pairs:
    """The flat index of (image, caption) pairs of a split, in row order: pair k shows image `image[k]` with caption k.

    `image` int64 [N] holds row indices, ascending; `captions` and `caption_ids` [N] and `image_ids` [images] are Arrow
    strings. `weight` float32 [N] in [0, 1] says how much pair k counts in training, whichever caption it gets; None
    means 1. `label` float32 [N]: 1 where a person said that pair k is right with the caption that it gets, 0 for wrong,
    NaN where nobody said either; None if nobody did for any pair.
    """

    image: np.ndarray
    captions: pa.Array
    caption_ids: pa.Array
    image_ids: pa.Array
    weight: np.ndarray | None = None
    label: np.ndarray | None = None

    @classmethod
    def from_rows(cls, rows: Dataset) -> "Pairs":
        """The pairs of rows of `ROW_FEATURES`, with weights if they have the column."""
        # without the images: reading them would copy all images that are stored as bytes
        table = rows.select_columns([name for name in rows.column_names if name != "image"]).with_format("arrow")[:]
        captions = table["captions"].combine_chunks()
        weighted, labelled = ("caption_weights" in rows.column_names, "caption_labels" in rows.column_names)
        counts = captions.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
        return cls(
            image=np.repeat(np.arange(len(rows), dtype=np.int64), counts),
            captions=captions.flatten(),
            caption_ids=table["caption_ids"].combine_chunks().flatten(),
            image_ids=table["image_id"].combine_chunks(),
            weight=table["caption_weights"].combine_chunks().flatten().to_numpy() if weighted else None,
            label=table["caption_labels"].combine_chunks().flatten().to_numpy(False) if labelled else None,
        )

    def heeded(self, estimate: np.ndarray) -> np.ndarray:
        """An estimate [N] of how right pairs are, replaced where people said what they are."""
        return estimate if self.label is None else np.where(np.isnan(self.label), estimate, self.label)

    @cached_property
    def captions_sha256(self) -> str:
        """Hash of the captions in the order of the pairs: the part of the data that a noise draw is made for."""
        return hash_strings(self.captions)

    def __len__(self) -> int:
        return len(self.image)
