"""Pairs dealt to batches in which neither an image nor a caption occurs twice.

Pairs are edges between images and captions, batches are colours: an edge colouring of a bipartite graph (Koenig 1916),
in which every colour is used equally often (de Werra 1971). Both exist whenever no image and no caption has more pairs
than there are batches.
"""

import random
from collections.abc import Sequence

import numpy as np

TRIES = 20  # random batches that a pair is offered, before all of them are looked at


def most_batches(images: np.ndarray, captions: np.ndarray, batch_size: int) -> int:
    """Number of full batches of pairs of images int64 [N] with captions int64 [N], none of either twice in a batch.

    0 if both an image and a caption have more pairs than there would be batches: which of these to leave out then has
    no simple answer.

    Example:
        >>> most_batches(np.arange(6), np.array([0, 0, 0, 1, 1, 2]), batch_size=2)
        3
    """
    sides = [np.bincount(side) for side in (images, captions)]
    low, high = 0, len(images) // batch_size
    while low < high:
        middle = (low + high + 1) // 2
        fits = min(np.minimum(counts, middle).sum() for counts in sides) >= middle * batch_size
        low, high = (middle, high) if fits else (low, middle - 1)
    return low if min(counts.max(initial=0) for counts in sides) <= low else 0


def deal(
    images: np.ndarray, captions: np.ndarray, batch_size: int, batches: int, generator: np.random.Generator
) -> np.ndarray:
    """Pair indices int64 [batches, batch_size], none twice, without an image or a caption twice in a batch.

    `images`, `captions` int64 [N] of every pair; `batches` at most `most_batches(...)`. Which pairs are left out, of an
    image or caption with more pairs than batches or because they fill no whole batch, differs each time.

    Example:
        >>> batches = deal(np.arange(6), np.array([0, 0, 0, 1, 1, 2]), 2, 3, np.random.default_rng(0))
        >>> sorted(np.sort(np.array([0, 0, 0, 1, 1, 2])[batches]).tolist())  # their captions
        [[0, 1], [0, 1], [0, 2]]
    """
    order = generator.permutation(len(images))
    for side in (images, captions):
        order = order[_place_in_group(side[order]) < batches]
    order = order[: batches * batch_size]
    # those with many pairs first, while there is room everywhere
    many = np.maximum(*(np.bincount(side[order])[side[order]] for side in (images, captions)))
    order = order[np.argsort(-many, kind="stable")]
    table = _Table((images[order].tolist(), captions[order].tolist()), batches, batch_size)
    table.fill(random.Random(int(generator.integers(2**63))))
    drawn = order[np.array([list(members) for members in table.members], dtype=np.int64).reshape(batches, batch_size)]
    return generator.permuted(drawn, axis=1)[generator.permutation(batches)]


def _place_in_group(values: np.ndarray) -> np.ndarray:
    """How many equal values come before each one: int64 [N]."""
    order = np.argsort(values, kind="stable")
    counts = np.bincount(values)
    place = np.empty_like(order)
    place[order] = np.arange(len(values)) - np.repeat(np.cumsum(counts) - counts, counts)
    return place


class _Table:
    """`members` of every batch, pairs in order; `ends`: image and caption of each pair; `size`: of a full batch."""

    def __init__(self, ends: tuple[Sequence[int], Sequence[int]], batches: int, size: int):
        self.ends, self.size = ends, size
        self.members: list[dict[int, None]] = [{} for _ in range(batches)]
        self.at: tuple[dict, dict] = ({}, {})  # of each side: (value, batch) -> its pair there

    def fill(self, generator: random.Random) -> None:
        """Put every pair into a batch, and fill every batch."""
        has_room = list(range(len(self.members)))
        for pair in range(len(self.ends[0])):
            place = self._place(pair, has_room, generator)
            if place is None:
                self._make_room(pair, generator)
                has_room = [number for number, members in enumerate(self.members) if len(members) < self.size]
                continue
            number = has_room[place]
            self._put(pair, number)
            if len(self.members[number]) >= self.size:
                has_room[place] = has_room[-1]
                has_room.pop()
        self._even_out()

    def _place(self, pair: int, has_room: list[int], generator: random.Random) -> int | None:
        """The place in `has_room` of a batch that has neither the image nor the caption; None if there is none."""
        for _ in range(TRIES if has_room else 0):
            place = int(generator.random() * len(has_room))
            if all(self._is_free(side, pair, has_room[place]) for side in (0, 1)):
                return place
        free = (place for place, number in enumerate(has_room) if all(self._is_free(s, pair, number) for s in (0, 1)))
        return next(free, None)

    def _is_free(self, side: int, pair: int, number: int) -> bool:
        return (self.ends[side][pair], number) not in self.at[side]

    def _put(self, pair: int, number: int) -> None:
        self.members[number][pair] = None
        for ends, at in zip(self.ends, self.at, strict=True):
            at[ends[pair], number] = pair

    def _take(self, pair: int, number: int) -> None:
        del self.members[number][pair]
        for ends, at in zip(self.ends, self.at, strict=True):
            del at[ends[pair], number]

    def _make_room(self, pair: int, generator: random.Random) -> None:
        """Put a pair into a batch without its image, after its caption has moved from there to one without it."""
        start = int(generator.random() * len(self.members))
        numbers = (*range(start, len(self.members)), *range(start))
        free = [next(number for number in numbers if self._is_free(side, pair, number)) for side in (0, 1)]
        self._swap(self._path(1, self.ends[1][pair], *free), *free)
        self._put(pair, free[0])

    def _path(self, side: int, value: int, first: int, second: int) -> list[int]:
        """The pairs from `value` on that are alternately in the batches `first` and `second`; it is not in `second`."""
        found = []
        while (pair := self.at[side].get((value, first))) is not None:
            found.append(pair)
            side = 1 - side
            value = self.ends[side][pair]
            first, second = second, first
        return found

    def _swap(self, path: list[int], first: int, second: int) -> None:
        """Exchange the pairs of a path between two batches: still nothing occurs twice in a batch."""
        for pair in path[0::2]:
            self._take(pair, first)
        for pair in path[1::2]:
            self._take(pair, second)
        for place, pair in enumerate(path):
            self._put(pair, first if place % 2 else second)

    def _even_out(self) -> None:
        """Move one pair from a batch that is too large to one that is too small, along a path between them."""
        for large in range(len(self.members)):
            while len(self.members[large]) > self.size:
                small = next(number for number, members in enumerate(self.members) if len(members) < self.size)
                self._swap(self._odd_path(large, small), large, small)

    def _odd_path(self, large: int, small: int) -> list[int]:
        """A path that begins and ends in the batch `large`: there is one, because that batch has more pairs."""
        starts = (self.ends[0][pair] for pair in self.members[large] if self._is_free(0, pair, small))
        paths = (self._path(0, value, large, small) for value in starts)
        return next(path for path in paths if len(path) % 2)
