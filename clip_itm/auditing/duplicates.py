"""Near-duplicate photos and captions, within a split and across splits, one block in memory at a time.

Links are found first, by hash (`near_hashes`), by embedding (`near_vectors`) or by text (`equal_texts`), then gathered
(`gather`). A group is a star: one photo, and those near to it. Connected components would chain the frames of a film,
though the first and the last have nothing in common; in a star no two are more than two links apart.
"""

import numpy as np
import torch
from torch import Tensor

from clip_itm.auditing.neighbours import slices
from clip_itm.auditing.photo_hash import BITS, PhotoHashes
from clip_itm.evaluation.ranking import BLOCK_BYTES
from clip_itm.precision import exact_float32

RADIUS = 8  # bits of 63: resized, recompressed, lighter, 2 % cut off; halves of equal size make all distances even
ALIKE = 0.9  # correlation of the small pictures; of Flickr8k's 33 million pairs of photos only a copy passes both
LINKS = 50  # by embedding, from a photo to the nearest earlier ones: identical photos would all link to each other
NEAR_PART = 8  # vectors are near within an eighth of a photo's distance to its tenth neighbour
NEIGHBOUR, SAMPLE = 10, 1000  # the tenth, so that up to nine copies do not count; photos in the sample
ROWS, COLUMNS = 1024, 4096  # cosines at once: what they are compared with stays in the cache
COMPARED = 2**22  # hashes at once


def near_hashes(hashes: PhotoHashes, radius: int = RADIUS, alike: float = ALIKE) -> np.ndarray:
    """Links int64 [E, 2] of photos whose hashes differ in at most `radius` bits, and whose small pictures correlate.

    The smaller number is first; links ascend. Photos with equal hashes are linked only to the first of them.
    """
    usable = np.flatnonzero(hashes.usable)
    bits, first, inverse = np.unique(hashes.bits[usable], return_index=True, return_inverse=True)
    first = usable[first]
    same = np.stack([first[inverse], usable], axis=1)
    pairs = np.concatenate([same[same[:, 0] < same[:, 1]], first[near_bits(bits, radius)]])
    pairs = pairs[hashes.alike(pairs[:, 0], pairs[:, 1]) >= alike] if len(pairs) else pairs
    return _sorted_links(pairs)


def near_bits(bits: np.ndarray, radius: int) -> np.ndarray:
    """Places int64 [E, 2] of distinct `bits` uint64 [U], 63 bits each, that are at most `radius` bits apart.

    Cut into `radius` + 1 parts, two such numbers share at least one part: only numbers with an equal part are compared.
    """
    parts = np.array_split(np.arange(BITS, dtype=np.uint64), radius + 1)
    found = [np.empty((0, 2), dtype=np.int64)]
    for number, part in enumerate(parts):
        mask = np.bitwise_or.reduce(np.uint64(1) << part)
        order = np.argsort(bits & mask, kind="stable")
        for places in np.split(order, np.flatnonzero(np.diff((bits & mask)[order])) + 1):
            for some in slices(len(places), max(1, COMPARED // len(places))):
                # lower triangle: a number is compared with those before it
                distance = np.bitwise_count(bits[places[some], None] ^ bits[None, places[: some.stop]])
                row, column = np.nonzero(distance <= radius)
                row += some.start
                kept = column < row
                links = np.stack([places[row[kept]], places[column[kept]]], axis=1)
                found.append(links[_is_first_part(bits, links, parts[:number])])
    return np.concatenate(found)


def _is_first_part(bits: np.ndarray, links: np.ndarray, earlier: list[np.ndarray]) -> np.ndarray:
    """bool [e]: whether no earlier part is equal, so that a link is found once."""
    differing = bits[links[:, 0]] ^ bits[links[:, 1]]
    first = np.ones(len(links), dtype=bool)
    for part in earlier:
        first &= (differing & np.bitwise_or.reduce(np.uint64(1) << part)) != 0
    return first


def near_vectors(vectors: Tensor, threshold: float, group: np.ndarray | None = None) -> np.ndarray:
    """Links int64 [E, 2] of unit `vectors` [M, D] with a cosine of at least `threshold`, the smaller number first.

    group: int64 [M]; members of one group (captions of one photo) are not linked. Each vector keeps its links to the
    nearest `LINKS` before it, the first on a tie. Time grows with the square of M: minutes for 200,000 vectors of 256.
    """
    vectors = vectors.float()
    own = None if group is None else torch.as_tensor(group)
    found = [np.empty((0, 2), dtype=np.int64)]
    for some in slices(len(vectors), ROWS):
        links, near = np.empty((0, 2), dtype=np.int64), np.empty(0, dtype=np.float32)
        for others in slices(some.stop, COLUMNS):
            with torch.inference_mode(), exact_float32(vectors.device):
                cosine = vectors[some] @ vectors[others].T
                row, column = (cosine >= threshold).nonzero(as_tuple=True)
                value = cosine[row, column].round(decimals=5)
                row, column = row + some.start, column + others.start
                kept = column < row
                if own is not None:
                    kept &= own[row] != own[column]
            if kept.any():
                more = torch.stack([column[kept], row[kept]], dim=1).cpu().numpy()
                links, near = np.concatenate([links, more]), np.concatenate([near, value[kept].cpu().numpy()])
                order = np.lexsort((links[:, 0], -near, links[:, 1]))
                links, near = links[order], near[order]
                kept = np.arange(len(links)) - np.searchsorted(links[:, 1], links[:, 1]) < LINKS
                links, near = links[kept], near[kept]
        found.append(links)
    return _sorted_links(np.concatenate(found))


def threshold_of(vectors: Tensor, seed: int = 0) -> float:
    """A cosine for `near_vectors`, from the unit `vectors` [M, D] themselves: every model has its own.

    1 - cosine is an eighth of that to the tenth nearest vector, by the median of a sample. 1 for ten vectors or fewer.
    """
    vectors = vectors.float()
    if len(vectors) <= NEIGHBOUR:
        return 1.0
    some = torch.from_numpy(np.random.default_rng(seed).permutation(len(vectors))[:SAMPLE])
    found = []
    for part in slices(len(some), max(1, BLOCK_BYTES // (4 * len(vectors)))):
        with torch.inference_mode(), exact_float32(vectors.device):
            cosine = vectors[some[part]] @ vectors.T
            cosine[torch.arange(len(cosine)), some[part]] = -torch.inf
            found.append(cosine.topk(NEIGHBOUR).values[:, -1])
    return float(1 - (1 - torch.cat(found).median()) / NEAR_PART)


def equal_texts(text_id: np.ndarray) -> np.ndarray:
    """Links int64 [E, 2] of captions with equal texts (int64 [N], from `number_captions`): each to the first."""
    _, first, inverse = np.unique(text_id, return_index=True, return_inverse=True)
    links = np.stack([first[inverse], np.arange(len(text_id))], axis=1)
    return links[links[:, 0] < links[:, 1]]


def gather(links: np.ndarray, count: int) -> list[np.ndarray]:
    """Groups of `count` items by their links int64 [E, 2], as ascending int64 arrays of at least two items.

    The item with the most open links takes all its open neighbours (the smaller number on a tie), then the next; an
    item is in one group at most.

    Example:
        >>> gather(np.array([[0, 1], [1, 2], [2, 3], [3, 4]]), 6)  # a chain of five: the ends are not together
        [array([0, 1, 2]), array([3, 4])]
    """
    if not len(links):
        return []
    both = np.unique(np.concatenate([links, links[:, ::-1]]), axis=0)
    neighbours = np.split(both[:, 1], np.searchsorted(both[:, 0], np.arange(1, count)))
    open_links = np.array([len(near) for near in neighbours])
    free = np.ones(count, dtype=bool)
    groups = []
    # links only close, so buckets by the number of open links, from above, find the item with the most
    buckets: list[list[int]] = [[] for _ in range(open_links.max() + 1)]
    for item in np.flatnonzero(open_links)[::-1].tolist():
        buckets[open_links[item]].append(item)
    for size in range(len(buckets) - 1, 0, -1):
        heap = buckets[size]
        heap.sort(reverse=True)
        while heap:
            item = heap.pop()
            if not free[item]:
                continue
            near = neighbours[item][free[neighbours[item]]]
            if len(near) < size:
                buckets[len(near)].append(item)
                continue
            members = np.sort(np.append(near, item))
            free[members] = False
            groups.append(members)
    return sorted(groups, key=lambda members: members[0])


def across(groups: list[np.ndarray], split: np.ndarray) -> list[np.ndarray]:
    """Leaks: the groups whose items are from several splits (`split` [M], a number or a name for each item)."""
    return [members for members in groups if len(np.unique(split[members])) > 1]


def _sorted_links(links: np.ndarray) -> np.ndarray:
    return np.unique(np.sort(links, axis=1), axis=0)
