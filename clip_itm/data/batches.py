"""Training batches: which pairs meet in a contrastive batch, and how a whole batch is read at once.

All pairs of a global batch are each other's negatives, so the order is drawn for global batches, and every process
takes its rows of each. An epoch uses every pair at most once and always has the same number of batches.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from clip_itm.data.image_cache import ImageCache
from clip_itm.data.images import read_image
from clip_itm.data.noise import CaptionNoise
from clip_itm.data.rows import Split
from clip_itm.data.tokens import CaptionTokens

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


def find_rows(wanted: np.ndarray, known: np.ndarray) -> tuple[Tensor, np.ndarray]:
    """Index int64 [M] of each of `wanted` [M] in known + more, and more: the values not in `known`, each once."""
    row = dict(zip(known[::-1].tolist(), range(len(known) - 1, -1, -1), strict=True))
    more = [value for value in dict.fromkeys(wanted.tolist()) if value not in row]
    row |= dict(zip(more, range(len(known), len(known) + len(more)), strict=True))
    return torch.tensor([row[value] for value in wanted.tolist()]), np.array(more, dtype=np.int64)


class PairBatchSampler(Sampler[list[int]]):
    """This process's rows of every global batch.

    Modes: `random` pairs; `unique`, no image twice in a batch; `grouped`, an image once with up to
    `captions_per_image` of its captions. The order depends only on (seed, epoch); process r of W takes rows r * B/W
    to (r + 1) * B/W of each batch of B = `batch_size` pairs over all processes. The last, incomplete batch is
    dropped; `len()` is exact and the same in every epoch. The attribute `batch_size` counts the pairs of this
    process.

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
    ):
        if batch_size % world_size:
            raise ValueError(
                f"training.batch_size {batch_size} does not divide among {world_size} processes; "
                f"use {batch_size // world_size * world_size or world_size} or another multiple of {world_size}"
            )
        self.pair_image = np.ascontiguousarray(pair_image, dtype=np.int64)
        self.per_image = {"random": None, "unique": 1, "grouped": min(captions_per_image, batch_size)}[mode]
        self.global_batch_size = batch_size
        self.batch_size = batch_size // world_size
        self.seed, self.rank, self.epoch = seed, rank, 0
        self.num_batches = count_batches(self.pair_image, batch_size, self.per_image)
        if self.num_batches == 0:
            raise ValueError(self._too_large(mode))

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
        generator = np.random.default_rng([self.seed, epoch])
        return draw_batches(self.pair_image, self.global_batch_size, self.per_image, generator)

    def _too_large(self, mode: BatchMode) -> str:
        if self.per_image is None:
            return (
                f"training.batch_size {self.global_batch_size} is larger than the training split "
                f"({len(self.pair_image)} pairs); lower training.batch_size"
            )
        counts = np.bincount(self.pair_image)
        limit = "each photo once" if mode == "unique" else f"{self.per_image} captions of a photo"
        return (
            f"training.batch_size {self.global_batch_size} with training.batches: {mode} can take {limit}, and the "
            f"{len(counts)} photos of the training split give {np.minimum(counts, self.per_image).sum()} such pairs; "
            "lower training.batch_size or use training.batches: random"
        )


class PairDataset(Dataset):
    """Training pairs, read a whole batch at a time: `__getitems__` gives the tensors, `collate_fn` passes them on.

    Pair k shows image `split.pairs.image[k]` with caption `noise.source[k]`. An image is read and preprocessed once
    per batch, however many captions it has there. Cached outputs of a frozen tower, if given, replace images or
    captions: `image_features`, arrays by image index (`image_features` [images, C], `image_tokens` [images, T, C']),
    and `text_features` [N, C] in the order of the original captions. So do `tokens`, the captions tokenized beforehand,
    and the regions of a split that has them.

    With `random_crop` < 1 an image is cropped, before `processor`, to its own aspect ratio and a random fraction of its
    area between `random_crop` and 1, at a random position: a function of (seed, epoch, image), whichever worker reads
    it.

    `memory`: pair indices (for every image int64 [images], for every pair int64 [N]) whose images and captions come
    along with each batch; None: no such entries. Raises ValueError if `noise` was made for other captions.
    """

    def __init__(
        self,
        split: Split,
        noise: CaptionNoise,
        processor,
        image_features: dict[str, np.ndarray] | None = None,
        text_features: np.ndarray | None = None,
        image_cache: ImageCache | None = None,
        random_crop: float = 1.0,
        seed: int = 0,
        tokens: CaptionTokens | None = None,
    ):
        noise.check(split.pairs)
        self.rows, self.pair_image, self.captions = split.rows, split.pairs.image, split.pairs.captions
        self.source, self.pair_weight, self.processor = noise.source, split.pairs.weight, processor
        self.image_features, self.text_features, self.tokens = image_features, text_features, tokens
        self.regions = split.regions
        self.image_cache, self.random_crop, self.seed = image_cache, random_crop, seed
        self.memory: tuple[np.ndarray, np.ndarray] | None = None
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # long-lived workers see it change

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that random crops depend on, in the workers of this data set too."""
        self.epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.pair_image)

    def __getitems__(self, pairs: list[int]) -> dict[str, Tensor]:
        """The batch of B pairs, P distinct images and captions of at most T tokens.

        `pixel_values` [P, 3, H, W] or `image_features` [P, C] (with `image_tokens` [P, T, C'] where the head reads
        them) or regions (`image_tokens` with `image_mask`, see `RegionFeatures.batch`), images in order of first
        appearance; `image_index` int64 [B], the row of each pair's image in them; `input_ids` and `attention_mask`
        [B, T] or `text_features` [B, C], or both if regions come with vectors; `pair_ids` and `image_ids` int64 [B],
        indices of the pair and of its image in the training split; `pair_weight` float32 [B] if the split has weights.
        With a memory, `memory_...` too (see `_with_memory`): first the entries of the images of the B pairs, then those
        of the pairs.
        """
        pair_ids = np.asarray(pairs, dtype=np.int64)
        image_ids, captions = self.pair_image[pair_ids], self.source[pair_ids]
        image_rows = np.array(list(dict.fromkeys(image_ids.tolist())))
        batch = {
            "image_index": find_rows(image_ids, image_rows)[0],
            "pair_ids": torch.from_numpy(pair_ids),
            "image_ids": torch.from_numpy(image_ids),
        }
        if self.pair_weight is not None:
            batch["pair_weight"] = torch.from_numpy(self.pair_weight[pair_ids])
        if self.memory is None:
            return batch | self._images(image_rows) | self._texts(captions)
        return batch | self._with_memory(pair_ids, image_rows, captions)

    def _with_memory(self, pair_ids: np.ndarray, image_rows: np.ndarray, captions: np.ndarray) -> dict[str, Tensor]:
        """Images and captions of the batch and, as `memory_...`, those of the 2 B entries that are not in the batch.

        `memory_image_index` and `memory_caption` int64 [2 B] are the rows of the entries in the two together,
        `memory_image_ids` int64 [2 B] their images in the training split.
        """
        image_entry, caption_entry = self.memory
        entries = np.concatenate([image_entry[self.pair_image[pair_ids]], caption_entry[pair_ids]])
        image_index, more_image_rows = find_rows(self.pair_image[entries], image_rows)
        caption, more_captions = find_rows(self.source[entries], captions)
        batch = {
            "memory_image_index": image_index,
            "memory_caption": caption,
            "memory_image_ids": torch.from_numpy(self.pair_image[entries]),
        }
        # read together, so that captions have one width and no side is ever read for nothing
        images = self._images(np.concatenate([image_rows, more_image_rows]))
        texts = self._texts(np.concatenate([captions, more_captions]))
        for own, tensors in ((len(image_rows), images), (len(captions), texts)):
            for name, tensor in tensors.items():
                batch |= {name: tensor[:own], f"memory_{name}": tensor[own:]}
        return batch

    def _images(self, image_rows: np.ndarray) -> dict[str, Tensor]:
        if self.regions is not None:
            return self.regions.batch(image_rows)
        if self.image_features is not None:
            return rows_of(self.image_features, image_rows)
        images = [self._image(int(image_index)) for image_index in image_rows]
        return {"pixel_values": self.processor(images=images, return_tensors="pt")["pixel_values"]}

    def _image(self, image_index: int) -> Image.Image:
        stored = self.rows[image_index]["image"]
        image = read_image(stored if self.image_cache is None else self.image_cache.image(stored))
        if self.random_crop == 1:
            return image
        generator = np.random.default_rng([self.seed, int(self.epoch), image_index])
        scale = np.sqrt(generator.uniform(self.random_crop, 1))
        size = np.maximum(1, np.round(scale * np.array(image.size))).astype(int)
        left, top = (generator.random(2) * (np.array(image.size) - size + 1)).astype(int)
        return image.crop((left, top, left + size[0], top + size[1]))

    def _texts(self, captions: np.ndarray) -> dict[str, Tensor]:
        if self.text_features is not None:
            return {"text_features": torch.from_numpy(self.text_features[captions])}
        vectors = {} if self.regions is None else self.regions.caption_batch(captions)
        if self.tokens is not None:
            return self.tokens.batch(captions) | vectors
        texts = self.captions.take(pa.array(captions)).to_pylist()
        tokens = self.processor(text=texts, return_tensors="pt")
        return {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]} | vectors


def rows_of(arrays: dict[str, np.ndarray], indices: np.ndarray) -> dict[str, Tensor]:
    """The rows `indices` int64 [M] of every array, as float32 tensors of the same names."""
    return {name: torch.from_numpy(np.asarray(array[indices], dtype=np.float32)) for name, array in arrays.items()}
