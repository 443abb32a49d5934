"""What a gallery holds, and what a search finds in it."""

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Item:
    """One photo or caption of a gallery.

    `id` is unique in an index. A photo has the `path` of its file or, without a file, a small JPEG of it as
    `thumbnail`; a caption has its text as `caption`.
    """

    id: str
    path: str | None = None
    caption: str | None = None
    thumbnail: bytes | None = None


class Hit(NamedTuple):
    """`rank` is 1 + the number of gallery items with a strictly greater score: equal scores share it."""

    item: Item
    score: float
    rank: int
