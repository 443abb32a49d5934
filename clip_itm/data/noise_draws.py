"""How the captions of the selected pairs are drawn, one function per level: int64 [N], the caption of each pair.

All use NumPy's legacy generator, to reproduce the published files: seed 99 gives those of NPC. The same seed and ratio
select the same pairs at every level but "image", which selects images.
"""

import numpy as np

from clip_itm.data.nouns import nouns_of
from clip_itm.data.rows import Pairs


def select(count: int, ratio: float, generator: np.random.RandomState) -> np.ndarray:
    """Some of `count` positions, int64 [int(ratio * count)] in random order: the published first draw."""
    order = np.arange(count, dtype=np.int64)
    generator.shuffle(order)
    return order[: int(ratio * count)]


def shuffled(slots: np.ndarray, generator: np.random.RandomState) -> np.ndarray:
    """`slots` in another order: the published second draw."""
    moved = slots.copy()
    generator.shuffle(moved)
    return moved


def shuffled_captions(pairs: Pairs, ratio: float, generator: np.random.RandomState) -> np.ndarray:
    """The captions of the selected pairs, shuffled among these."""
    source = np.arange(len(pairs), dtype=np.int64)
    slots = select(len(pairs), ratio, generator)
    source[slots] = shuffled(slots, generator)
    return source


def shuffled_sets(pairs: Pairs, ratio: float, generator: np.random.RandomState) -> np.ndarray:
    """All captions of the selected images, shuffled among the images with equally many; they stay in order.

    With unequal counts, images and their destinations are matched within each count: the j-th of one with the j-th of
    the other.
    """
    counts = np.bincount(pairs.image, minlength=len(pairs.image_ids))
    starts = np.cumsum(counts) - counts
    slots = select(len(counts), ratio, generator)
    moved = shuffled(slots, generator)
    origin = np.arange(len(counts), dtype=np.int64)
    for count in np.unique(counts[slots]):
        origin[moved[counts[moved] == count]] = slots[counts[slots] == count]
    position_in_image = np.arange(len(pairs), dtype=np.int64) - starts[pairs.image]
    return starts[origin[pairs.image]] + position_in_image


def captions_of_neighbours(
    pairs: Pairs, ratio: float, generator: np.random.RandomState, neighbours: np.ndarray
) -> np.ndarray:
    """For each selected pair, one of the captions of its image's `neighbours` int64 [images, k], all equally likely.

    Captions are drawn with replacement: one may be used several times, another never. Raises ValueError unless
    `neighbours` names other images, with captions, for every image.
    """
    counts = np.bincount(pairs.image, minlength=len(pairs.image_ids))
    starts = np.cumsum(counts) - counts
    _check_neighbours(neighbours, counts)
    source = np.arange(len(pairs), dtype=np.int64)
    slots = select(len(pairs), ratio, generator)
    image = pairs.image[slots]
    ends = counts[neighbours].cumsum(axis=1)  # of the captions of each neighbour, all of them in a line
    place = (generator.random_sample(len(slots)) * ends[image, -1]).astype(np.int64)
    column = (ends[image] <= place[:, None]).sum(axis=1)
    chosen = neighbours[image, column]
    source[slots] = starts[chosen] + place - (ends[image, column] - counts[chosen])
    return source


def _check_neighbours(neighbours: np.ndarray, counts: np.ndarray) -> None:
    if neighbours.ndim != 2 or len(neighbours) != len(counts) or neighbours.dtype.kind not in "iu":
        raise ValueError(
            f"neighbours of {len(counts)} photos: expected photo numbers [{len(counts)}, k], found "
            f"{neighbours.dtype} {list(neighbours.shape)}"
        )
    if not neighbours.size:
        raise ValueError(
            f"noise.level neighbour takes captions of other photos, and the training split has {len(counts)}: use more "
            "photos, or noise.level caption"
        )
    own = np.arange(len(counts))[:, None]
    if neighbours.min() < 0 or neighbours.max() >= len(counts) or (neighbours == own).any():
        raise ValueError(f"neighbours must be other photos, numbered 0 to {len(counts) - 1}")
    if (alone := np.flatnonzero(counts[neighbours].sum(axis=1) == 0)).size:
        raise ValueError(f"none of the {neighbours.shape[1]} photos nearest to photo {alone[0]} has a caption")


def captions_with_a_noun(pairs: Pairs, ratio: float, generator: np.random.RandomState) -> tuple[np.ndarray, int]:
    """For each selected pair, a caption of another image that shares a noun with its own (see `nouns_of`).

    One of the caption's nouns is drawn, among those that captions of other images have, then one of these captions,
    with replacement. The pairs without such a noun are shuffled among themselves; the second result is their number.
    """
    nouns = [nouns_of(caption) for caption in pairs.captions.to_pylist()]
    having: dict[str, list[int]] = {}
    for caption, own in enumerate(nouns):
        for noun in own:
            having.setdefault(noun, []).append(caption)
    captions_of = {noun: np.array(captions) for noun, captions in having.items()}
    images_of = {noun: pairs.image[captions] for noun, captions in captions_of.items()}

    source = np.arange(len(pairs), dtype=np.int64)
    without = []
    for slot in select(len(pairs), ratio, generator):
        usable = []
        for noun in nouns[slot]:  # the captions of the own image are next to each other in the list of a noun
            first, end = np.searchsorted(images_of[noun], [pairs.image[slot], pairs.image[slot] + 1])
            if others := len(captions_of[noun]) - (end - first):
                usable.append((captions_of[noun], first, end, others))
        if not usable:
            without.append(slot)
            continue
        captions, first, end, others = usable[generator.randint(len(usable))]
        place = generator.randint(others)
        source[slot] = captions[place if place < first else place + end - first]
    rest = np.array(without, dtype=np.int64)
    source[rest] = shuffled(rest, generator)
    return source, len(rest)
