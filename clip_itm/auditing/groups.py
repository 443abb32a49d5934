"""Groups of pairs that share a fault, to be decided on at once, before single pairs are looked at."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from clip_itm.auditing.captions import caption_faults
from clip_itm.auditing.duplicates import across


@dataclass(frozen=True, eq=False)
class Group:
    """Pairs that share a fault. A pair may be in several groups.

    `kind`: the rule, such as "file name". `title`, `sentence` (why) and `advice` (what to do) are for people; all three
    may quote a caption, which is untrusted text: show it through `visible`. `pairs` int64, ascending. `parts`: what
    belongs together within the group, int64 arrays of photos ("leak", "copies", "similar") or of pairs ("alike").
    """

    kind: str
    title: str
    sentence: str
    advice: str
    pairs: np.ndarray
    parts: tuple[np.ndarray, ...] = ()

    def __len__(self) -> int:
        return len(self.pairs)


class Words(NamedTuple):
    title: str
    sentence: str
    advice: str


LEAVE_OUT = "They say nothing of the photo: leave them out, or write captions."
WORDS = {
    "file name": Words("File names", "A camera or a program gave this name, and nobody described the photo.", ""),
    "link": Words("Links", "The caption is an address and hardly anything else.", ""),
    "interface": Words("Words of a page", "The text belongs to the page around the photo, not to the photo.", ""),
    "placeholder": Words("Placeholders", "The text takes the place of a caption.", ""),
    "no words": Words("Without words", "Nothing but digits, punctuation or a single letter is left.", ""),
    "same text": Words(
        "The same text: {name}",
        "It is the caption of {photos:,} photos, and can hardly describe each of them.",
        "Look at a few photos; if it does not describe them, leave it out everywhere.",
    ),
    "frame": Words(
        "The same {end}: {name}",
        "{photos:,} photos have it in different captions, and its words hardly occur anywhere else.",
        "If it says nothing of the photos, cut it off and keep the rest of the captions.",
    ),
    "language": Words(
        "Captions in {name}",
        "Most captions are in another language or script.",
        "To a text encoder that does not know it they are noise: translate them, leave them out, or choose another.",
    ),
}
LEAK = Words(
    "Photos of {others}, too",
    "{photos:,} photos are copies of photos in {others}: figures on these are too good.",
    "Leave them out of training.",
)
COPIES = Words(
    "Copies of photos",
    "{photos:,} photos are {parts:,}, each several times: resized, compressed again, or nearly the same shot.",
    "Keep one of each, with the right ones among all their captions.",
)
SIMILAR = Words(
    "Photos that are almost the same to the model",
    "{photos:,} photos are {parts:,} in other versions: cut, turned, or only of one thing.",
    "Look at them: captions of one may fit the others, and copies among them need only be there once.",
)
ALIKE = Words(
    "Captions that are almost the same",
    "{pairs:,} captions under different photos are {parts:,} in different words.",
    "They may be right: look whether both photos show it.",
)
FIRST = ("file name", "link", "interface", "placeholder", "no words", "same text", "frame", "language")
EMPTY = FIRST[:6]  # kinds of captions that fit no photo
KINDS = ("leak", *FIRST, "copies")  # of faults; "similar" and "alike" are only to be looked at


def groups_of(
    captions: Sequence[str],
    image: np.ndarray,
    photo_groups: Sequence[np.ndarray] = (),
    split: Sequence[str] | None = None,
    caption_groups: Sequence[np.ndarray] = (),
    similar_groups: Sequence[np.ndarray] = (),
) -> list[Group]:
    """Groups in the order in which they are best decided on: leaks, captions without content, copies.

    captions: [N], of the pairs. image: int64 [N], their photos.
    photo_groups: copies, from `duplicates.gather`. split: the name of each photo's split, if the photos of several
        are numbered together; the photos of the pairs come first, all of the first split.
    caption_groups: pairs whose captions are almost the same, from `duplicates.gather`: often no fault.
    similar_groups: photos of the pairs that are near to each other but not copies: often no fault, either.

    Empty if nothing is found. Raises ValueError for arguments of different lengths.

    Example:
        >>> [(group.title, group.pairs.tolist()) for group in groups_of(["a mug", "IMG_2031"], np.array([0, 1]))]
        [('File names', [1])]
    """
    image = np.asarray(image)
    groups = []
    if split is not None:
        groups += _leaks(photo_groups, np.asarray(split), image)
    faults = caption_faults(captions, image)
    groups += [group for kind in FIRST for group in _captions(kind, faults.get(kind, {}), captions, image)]
    groups += _copies(photo_groups, image, None if split is None else np.asarray(split))
    if similar_groups:
        photos = np.concatenate(list(similar_groups))
        counts = {"photos": len(photos), "parts": len(similar_groups)}
        members = np.flatnonzero(np.isin(image, photos))
        groups.append(_group("similar", SIMILAR, counts, members, tuple(similar_groups)))
    if caption_groups:
        pairs = np.unique(np.concatenate(list(caption_groups)))
        counts = {"pairs": len(pairs), "parts": len(caption_groups)}
        groups.append(_group("alike", ALIKE, counts, pairs, tuple(caption_groups)))
    return groups


def kinds_of_pairs(groups: Sequence[Group], count: int) -> pa.ListArray:
    """For each of `count` pairs, the kinds of the groups that it is in, each once, in the order of the groups.

    Example:
        >>> kinds_of_pairs(groups_of(["a mug", "IMG_2031"], np.array([0, 1])), 2).to_pylist()
        [[], ['file name']]
    """
    kinds = list(dict.fromkeys(group.kind for group in groups))
    members = [group.pairs * len(kinds) + kinds.index(group.kind) for group in groups]
    pair, kind = np.divmod(np.unique(np.concatenate([np.empty(0, np.int64), *members])), max(1, len(kinds)))
    starts = np.searchsorted(pair, np.arange(count + 1))
    return pa.ListArray.from_arrays(pa.array(starts, pa.int32()), pa.array(kinds, pa.string()).take(pa.array(kind)))


def _captions(kind: str, found: dict[str, np.ndarray], captions: Sequence[str], image: np.ndarray) -> Iterator[Group]:
    words = WORDS[kind]._replace(advice=WORDS[kind].advice or LEAVE_OUT)
    for name, pairs in found.items():
        if kind == "same text":
            name = f'"{captions[pairs[0]].strip()}"'
        end = "end" if name.startswith("...") else "beginning"
        yield _group(kind, words, {"name": name, "end": end, "photos": len(np.unique(image[pairs]))}, pairs)


def _leaks(groups: Sequence[np.ndarray], split: np.ndarray, image: np.ndarray) -> Iterator[Group]:
    """One group for all other splits together: a photo that two of them have is left out once."""
    own = split[0] if len(split) else ""
    parts = [members for members in across(list(groups), split) if (split[members] == own).any()]
    if parts:
        photos = np.concatenate([members[split[members] == own] for members in parts])
        others = " and ".join(sorted({str(name) for members in parts for name in split[members]} - {str(own)}))
        values = {"photos": len(photos), "others": others}
        yield _group("leak", LEAK, values, np.flatnonzero(np.isin(image, photos)), tuple(parts))


def _copies(groups: Sequence[np.ndarray], image: np.ndarray, split: np.ndarray | None) -> Iterator[Group]:
    """Copies within the split of the pairs."""
    own = [members if split is None else members[split[members] == split[0]] for members in groups]
    parts = tuple(members for members in own if len(members) > 1)
    if parts:
        photos = np.concatenate(parts)
        values = {"photos": len(photos), "parts": len(parts)}
        yield _group("copies", COPIES, values, np.flatnonzero(np.isin(image, photos)), parts)


def _group(
    kind: str, words: Words, values: dict[str, object], pairs: np.ndarray, parts: tuple[np.ndarray, ...] = ()
) -> Group:
    return Group(kind, *(text.format(**values) for text in words), pairs, parts)
