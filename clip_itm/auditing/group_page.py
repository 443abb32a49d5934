"""Groups of an audit for people: which are shown, with examples, and as a table for the terminal."""

from typing import NamedTuple

import numpy as np

from clip_itm.auditing.groups import Group
from clip_itm.auditing.table import Audit
from clip_itm.auditing.thumbnails import make_thumbnails

SIDE = 320  # pixels of an example: it can be enlarged
SHOWN = 10  # groups of one kind, the largest
PAIRS = 6  # examples of a group of captions
PARTS, COPIES = 3, 4  # photos with their copies, and copies of each
CAPTIONS = 2  # of a photo among copies
NOTHING = "no copies of photos, within a split or between two, and no captions without content"
NO_PHOTOS = "no captions without content (there are no photos to compare)"


class Example(NamedTuple):
    """A photo of a group. `split`: which one it is from, if that matters."""

    image_id: str
    captions: list[str]
    jpeg: bytes | None
    split: str = ""


class ShownGroup(NamedTuple):
    """A group with examples; those in one list belong together, such as copies."""

    group: Group
    parts: list[list[Example]]


def shown_groups(audit: Audit) -> tuple[list[Group], list[tuple[str, int, int]]]:
    """At most `SHOWN` groups of a kind; for the others: kind, number of groups, number of pairs."""
    kinds = dict.fromkeys(group.kind for group in audit.groups)
    of_kind = {kind: [group for group in audit.groups if group.kind == kind] for kind in kinds}
    rest = [
        (kind, len(groups) - SHOWN, sum(map(len, groups[SHOWN:])))
        for kind, groups in of_kind.items()
        if len(groups) > SHOWN
    ]
    return [group for groups in of_kind.values() for group in groups[:SHOWN]], rest


def nothing_found(audit: Audit) -> str:
    """What was looked for in vain, if there are no groups."""
    return NOTHING if len(audit.photos) else NO_PHOTOS


def with_examples(audit: Audit, groups: list[Group]) -> list[ShownGroup]:
    """Groups with examples: the first pairs of groups of captions, and the first photos that have copies."""
    image = audit.split.pairs.image
    parts = [
        [part[:COPIES] for part in group.parts[:PARTS]] if group.parts else [group.pairs[:PAIRS]] for group in groups
    ]
    numbers = [part if group.parts else image[part] for group, own in zip(groups, parts, strict=True) for part in own]
    jpegs = make_thumbnails(audit.photos, np.concatenate([np.empty(0, np.int64), *numbers]).tolist(), SIDE)
    return [
        ShownGroup(
            group,
            [
                [_copy(audit, k, jpegs) if group.parts else _pair(audit, k, jpegs) for k in part.tolist()]
                for part in own
            ],
        )
        for group, own in zip(groups, parts, strict=True)
    ]


def _pair(audit: Audit, pair: int, jpegs: dict[int, bytes | None]) -> Example:
    number = int(audit.split.pairs.image[pair])
    return Example(audit.split.pairs.image_ids[number].as_py(), [audit.captions[pair]], jpegs[number])


def _copy(audit: Audit, number: int, jpegs: dict[int, bytes | None]) -> Example:
    """A photo of any split, with the captions that the audit judged, or those of its row."""
    row, split = audit.photos.row(number), str(audit.photos.names[number])
    captions = row["captions"]
    if split == audit.name:
        captions = audit.captions[slice(*np.searchsorted(audit.split.pairs.image, [number, number + 1]))]
    return Example(row["image_id"], list(captions[:CAPTIONS]), jpegs[number], split)


def lines_of_groups(audit: Audit) -> list[tuple[str, ...]]:
    """A table of the groups with a header."""
    groups, rest = shown_groups(audit)
    lines = [("group", "pairs", "advice")]
    lines += [(group.title, f"{len(group):,}", group.advice) for group in groups]
    return lines + [(f"{number:,} more: {kind}", f"{pairs:,}", "") for kind, number, pairs in rest]
