"""Which pairs meet in a contrastive batch.

All pairs of a global batch are each other's negatives, so the order is drawn for global batches, and every process
takes its rows of each. An epoch uses every pair at most once and always has the same number of batches.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
from torch.utils.data import Sampler

from clip_itm.data.deal import deal, most_batches

BatchMode = Literal["random", "unique", "grouped"]


def count_batches(pair_image: np.ndarray, batch_size: int, per_image: int | None) -> int:
    """Number of full batches in an epoch if no batch holds more than `per_image` pairs of an image (None: no limit).

    `pair_image` int64 [N] is the image of each pair. No order gives more: M batches can be filled if and only if the
    images, each giving at most what M batches take of it, hold M * batch_size pairs. (If batch_size is not a multiple
    of per_image, an image with more pairs than there are batches gives at most one pair to each batch: a loss that only
    shows on tiny data.)

    Example:
        >>> count_batches(np.array([0, 0, 0, 1, 1, 2]), batch_size=2, per_image=1)
        3
    """
    if per_image is None:
        return len(pair_image) // batch_size
    counts = np.bincount(pair_image)
    low, high = 0, len(pair_image) // batch_size
    while low < high:
        middle = (low + high + 1) // 2
        usable = np.minimum(counts, _most_of_an_image(middle, batch_size, per_image)).sum()
        low, high = (middle, high) if usable >= middle * batch_size else (low, middle - 1)
    return low


def draw_batches(
    pair_image: np.ndarray, batch_size: int, per_image: int | None, generator: np.random.Generator
) -> np.ndarray:
    """One epoch: pair indices int64 [M, batch_size] with M = `count_batches(...)`, none twice.

    No image has more than `per_image` pairs in a batch.

    How: the pairs are laid out in a line, image after image, and cut into cells of `per_image`. The cells are dealt
    to the batches in rounds, each round in a new random order, so every batch gets one cell per round. The cells of an
    image within a round go to different batches; if an image extends into the next round, that round begins with
    batches that do not have it yet.

    Example:
        >>> batches = draw_batches(np.array([0, 0, 1, 1, 2, 2]), 3, per_image=1, generator=np.random.default_rng(0))
        >>> np.sort(batches // 2, axis=1).tolist()  # the images of each batch
        [[0, 1, 2], [0, 1, 2]]
    """
    batches = count_batches(pair_image, batch_size, per_image)
    if per_image is None:
        return generator.permutation(len(pair_image))[: batches * batch_size].reshape(batches, batch_size)
    line = _image_after_image(pair_image, batches, batch_size, per_image, generator)
    image_index = pair_image[line]
    begins = np.append(np.flatnonzero(np.diff(image_index, prepend=-1)), len(line))
    drawn = np.empty((batches, batch_size), dtype=np.int64)
    order = np.empty(0, dtype=np.int64)
    for column in range(0, batch_size, per_image):
        width = min(per_image, batch_size - column)
        start = column * batches
        run = np.searchsorted(begins, start, side="right")  # start is in begins[run - 1] .. begins[run], one image
        cells_before = -(-(start - begins[run - 1]) // per_image)
        cells_after = -(-(begins[run] - start) // width) if cells_before else 0
        order = _next_round(order[batches - cells_before :], cells_after, generator.permutation(batches))
        drawn[order, column : column + width] = line[start : start + width * batches].reshape(batches, width)
    return drawn


def _most_of_an_image(batches: int, batch_size: int, per_image: int) -> int:
    return batches * (per_image if batch_size % per_image == 0 else 1)


def _image_after_image(
    pair_image: np.ndarray, batches: int, batch_size: int, per_image: int, generator: np.random.Generator
) -> np.ndarray:
    """Exactly batches * batch_size pairs, images in random order except that those that fill whole cells come first."""
    counts = np.bincount(pair_image)
    order = generator.permutation(len(counts))
    quota = np.minimum(counts[order], _most_of_an_image(batches, batch_size, per_image))
    quota = np.clip(batches * batch_size - (np.cumsum(quota) - quota), 0, quota)
    whole_first = np.argsort(quota % per_image != 0, kind="stable")
    order, quota = order[whole_first], quota[whole_first]
    position = np.empty_like(order)
    position[order] = np.arange(len(order))
    pairs = generator.permutation(len(pair_image))
    pairs = pairs[np.argsort(position[pair_image[pairs]], kind="stable")]
    position_in_image = np.arange(len(pairs)) - np.repeat(np.cumsum(counts[order]) - counts[order], counts[order])
    return pairs[position_in_image < np.repeat(quota, counts[order])]


def _next_round(taken: np.ndarray, cells: int, order: np.ndarray) -> np.ndarray:
    """`order` rearranged so that its first `cells` batches are not among `taken`, which already have the image.

    An image with as many pairs as all batches can take may need one more cell than there are batches: its last cell
    then completes its first one, in the batch taken[0].
    """
    head = np.concatenate([order[np.isin(order, taken, invert=True)], taken[:1]])[:cells]
    return np.concatenate([head, order[np.isin(order, head, invert=True)]])


class PairBatchSampler(Sampler[list[int]]):
    """This process's rows of every global batch.

    Modes: `random` pairs; `unique`, no image twice in a batch; `grouped`, an image once with up to
    `captions_per_image` of its captions. The order depends only on (seed, epoch); process r of W takes rows r * B/W
    to (r + 1) * B/W of each batch of B = `batch_size` pairs over all processes. The last, incomplete batch is
    dropped; `len()` is exact and the same in every epoch. The attribute `batch_size` counts the pairs of this
    process.

    `pairs` int64 [n]: only these are drawn. `num_batches`: an epoch has this many batches; it continues where the one
    before ended, and the pairs come in a new order whenever all of them have been drawn. `pair_caption` int64 [N], a
    number of each pair's caption, with mode `unique`: no caption twice in a batch, either.

    Raises ValueError if not even one batch can be filled, or if the batch does not divide among the processes.

    Example:
        >>> sampler = PairBatchSampler(np.array([0, 0, 1, 1, 2, 2]), "unique", batch_size=3)
        >>> len(sampler), [len(batch) for batch in sampler]
        (2, [3, 3])
    """

    def __init__(
        self,
        pair_image: np.ndarray,
        mode: BatchMode,
        batch_size: int,
        captions_per_image: int = 1,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        pairs: np.ndarray | None = None,
        num_batches: int | None = None,
        pair_caption: np.ndarray | None = None,
    ):
        if batch_size % world_size:
            raise ValueError(
                f"training.batch_size {batch_size} does not divide among {world_size} processes; "
                f"use {batch_size // world_size * world_size or world_size} or another multiple of {world_size}"
            )
        self.pair_image = np.ascontiguousarray(pair_image, dtype=np.int64)
        self.pairs = np.arange(len(pair_image)) if pairs is None else pairs
        self._image = np.unique(self.pair_image[self.pairs], return_inverse=True)[1]  # those of `pairs`, without gaps
        self.pair_caption = pair_caption
        if pair_caption is not None:
            self._caption = np.unique(pair_caption[self.pairs], return_inverse=True)[1]
        self.captions_per_image = captions_per_image
        self.per_image = {"random": None, "unique": 1, "grouped": min(captions_per_image, batch_size)}[mode]
        self.global_batch_size = batch_size
        self.batch_size = batch_size // world_size
        self.mode, self.seed, self.rank, self.world_size, self.epoch = mode, seed, rank, world_size, 0
        self.batches_per_pass = (
            count_batches(self._image, batch_size, self.per_image)
            if pair_caption is None
            else most_batches(self._image, self._caption, batch_size)
        )
        if self.batches_per_pass == 0:
            raise ValueError(self._too_large(mode))
        self.num_batches = num_batches or self.batches_per_pass

    def of(self, pairs: np.ndarray, num_batches: int | None = None) -> "PairBatchSampler":
        """The same sampler for `pairs` int64 [n], some of those that this one draws from."""
        return PairBatchSampler(
            self.pair_image,
            self.mode,
            self.global_batch_size,
            self.captions_per_image,
            self.seed,
            self.rank,
            self.world_size,
            pairs,
            num_batches,
            self.pair_caption,
        )

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose batches the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        own = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        for batch in self.draw(self.epoch):
            yield batch[own].tolist()

    def draw(self, epoch: int) -> np.ndarray:
        """The global batches of an epoch: pair indices int64 [M, B]."""
        first, last = epoch * self.num_batches, (epoch + 1) * self.num_batches
        passes = range(first // self.batches_per_pass, -(-last // self.batches_per_pass))
        drawn = np.concatenate([self._draw_pass(number) for number in passes])
        start = first - passes.start * self.batches_per_pass
        return self.pairs[drawn[start : start + self.num_batches]]

    def _draw_pass(self, number: int) -> np.ndarray:
        generator = np.random.default_rng([self.seed, number])
        if self.pair_caption is not None:
            return deal(self._image, self._caption, self.global_batch_size, self.batches_per_pass, generator)
        return draw_batches(self._image, self.global_batch_size, self.per_image, generator)

    def _too_large(self, mode: BatchMode) -> str:
        if self.per_image is None:
            return (
                f"training.batch_size {self.global_batch_size} is larger than the training split "
                f"({len(self.pairs)} pairs); lower training.batch_size"
            )
        if self.pair_caption is not None and count_batches(self._image, self.global_batch_size, 1):
            return (
                f"training.batch_size {self.global_batch_size} with training.unique_captions can take each of the "
                f"{self._caption.max() + 1} captions of the training split once, under other photos: no epoch has such "
                "batches; lower training.batch_size, or leave training.unique_captions out"
            )
        counts = np.bincount(self._image)
        limit = "each photo once" if mode == "unique" else f"{self.per_image} captions of a photo"
        return (
            f"training.batch_size {self.global_batch_size} with training.batches: {mode} can take {limit}, and the "
            f"{len(counts)} photos of the training split give {np.minimum(counts, self.per_image).sum()} such pairs; "
            "lower training.batch_size or use training.batches: random"
        )
