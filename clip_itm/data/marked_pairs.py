"""Which pairs of a data set marks are about, and what they say about each."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import merge
from pathlib import Path

import numpy as np

from clip_itm.data.marks import Mark, marks_of_pairs, pair_hashes, read_marks
from clip_itm.data.noise import CaptionNoise
from clip_itm.data.rows import Pairs

RIGHT, WRONG = 1.0, 0.0
LABELS = {"right": RIGHT, "wrong": WRONG, "fixed": WRONG}


@dataclass(frozen=True, eq=False)
class MarkedPairs:
    """`pair` int64 [M], ascending: which of N pairs were looked at; `marks` [M]: the mark that counts for each.

    `count`: N. `unmatched`: how many marks are of no pair of these data.
    """

    pair: np.ndarray
    marks: Sequence[Mark]
    count: int
    unmatched: int = 0

    @classmethod
    def of(cls, pairs: Pairs, noise: CaptionNoise, marks: Iterable[Mark]) -> "MarkedPairs":
        """Those of `marks` (oldest first, as from `read_marks`) that are of these pairs with their captions.

        Pairs of one photo with equal captions are marked together.
        """
        counting = marks_of_pairs(marks)
        if not counting:
            return cls(np.empty(0, dtype=np.int64), (), len(pairs))
        image_ids = pairs.image_ids.to_pylist()
        hashes = pair_hashes((image_ids[image] for image in pairs.image), noise.apply(pairs).to_pylist())
        found = [k for k, name in enumerate(hashes) if name in counting]
        unmatched = len(counting.keys() - {hashes[k] for k in found})
        return cls(np.array(found, dtype=np.int64), [counting[hashes[k]] for k in found], len(pairs), unmatched)

    @cached_property
    def label(self) -> np.ndarray:
        """float64 [M]: RIGHT, WRONG (also for fixed ones), NaN for skipped ones."""
        return np.array([LABELS.get(mark.mark, np.nan) for mark in self.marks])

    @cached_property
    def labels(self) -> np.ndarray:
        """The labels of all pairs, float64 [N]; NaN without a mark."""
        labels = np.full(self.count, np.nan)
        labels[self.pair] = self.label
        return labels

    @cached_property
    def sampled(self) -> np.ndarray:
        """bool [M]: the pair is right or wrong, and from a random sample."""
        return np.array([mark.sampled for mark in self.marks], dtype=bool) & ~np.isnan(self.label)

    @cached_property
    def weight(self) -> np.ndarray:
        """float64 [M]: how many pairs a pair of the sample represents."""
        return np.array([mark.weight or 1.0 for mark in self.marks])

    @property
    def texts(self) -> dict[int, str]:
        """The right text for each pair whose caption was fixed."""
        return {
            int(k): mark.text.strip()
            for k, mark in zip(self.pair, self.marks, strict=True)
            if mark.mark == "fixed" and mark.text
        }

    @property
    def counts(self) -> dict[str, int]:
        """How many pairs have each mark: `right`, `wrong`, `fixed`, `skipped`."""
        return dict(Counter(mark.mark for mark in self.marks))

    @property
    def authors(self) -> dict[str, int]:
        """How many of the marks that count are by each author, the busiest first."""
        return dict(Counter(mark.author or "unknown" for mark in self.marks).most_common())

    @property
    def sha256(self) -> str:
        """Hash of what the marks say: pairs, labels and texts."""
        texts = self.texts
        known = np.flatnonzero(~np.isnan(self.label))
        said = [(self.marks[m].pair, self.label[m], texts.get(int(self.pair[m]))) for m in known]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def read_all_marks(files: Iterable[str | Path]) -> list[Mark]:
    """The marks of several files by time, those of one file in its order; ValueError for a file of anything else."""
    return list(merge(*map(read_marks, files), key=lambda mark: mark.time))
