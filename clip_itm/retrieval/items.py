"""What a gallery holds, and what a search finds in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True)
class Item:
    """One image or caption of a gallery.

    `id` is unique in an index. An image has the `path` of its file or, without a file, a small JPEG of it as
    `thumbnail`; a caption has its text as `caption`.
    `content`: XXH3-64 of the image file that was encoded; `stamp`: of its size and times then, so that an unchanged
    file need not be read to be recognised. None if there is no file, and in indexes of earlier versions.
    """

    id: str
    path: str | None = None
    caption: str | None = None
    thumbnail: bytes | None = None
    content: int | None = None
    stamp: int | None = None


class Hit(NamedTuple):
    """`rank` is 1 + the number of gallery items with a strictly greater score: equal scores share it."""

    item: Item
    score: float
    rank: int


def make_hits(items: Sequence[Item], scores: np.ndarray) -> list[Hit]:
    """Hits of the best items of a gallery, given best first with their scores [k]."""
    ranks = 1 + np.searchsorted(-scores, -scores)
    return [Hit(*hit) for hit in zip(items, scores.tolist(), ranks.tolist(), strict=True)]
