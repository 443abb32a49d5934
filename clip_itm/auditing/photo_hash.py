"""A perceptual hash of photos: the same for a copy that was resized, compressed again, or made lighter or darker.

The grey photo is shrunk to 32 x 32; of its cosine transform the 8 x 8 lowest frequencies, without the mean, are
compared with their median: 63 bits. Bits alone take two sunsets for one, so a small grey picture (16 x 16) is kept with
them, and photos are near only if these correlate, too. A photo cropped by more than a few per cent, turned or mirrored
has another hash: embeddings find some of these (`duplicates.near_vectors`).
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
from datasets import Dataset
from PIL import Image
from tqdm.auto import tqdm

from clip_itm.data.images import read_image

SIDE, LOW, SMALL = 32, 8, 16  # the shrunk photo, frequencies per direction, and the picture that is kept
BITS = LOW * LOW - 1
DRAFT = 128  # a JPEG is decoded at this size or above: its 32 x 32 then differ by less than a grey level
FLAT = 4  # grey levels: a photo that varies less, such as a blank one, has no structure to compare
TINY = 8  # pixels of the shorter side: neither has an icon or a spacer
VERSION = 1  # of the computation: kept hashes belong to it
AT_ONCE = 1024  # photos handed to the threads, so that rows are not read ahead of the decoding


@dataclass(frozen=True, eq=False)
class PhotoHashes:
    """Hashes of P photos.

    `bits` uint64 [P]; `small` uint8 [P, 256], the grey pictures; `usable` bool [P]: False for photos that are flat,
    tiny or cannot be read, which are near to nothing.
    """

    bits: np.ndarray
    small: np.ndarray
    usable: np.ndarray

    @classmethod
    def of_rows(cls, rows: Dataset, workers: int | None = None, bar: tqdm | None = None) -> "PhotoHashes":
        """Hashes of the photos of rows (`data.rows.ROW_FEATURES`).

        workers: threads that decode (default: one per core). bar: counts the photos.
        """
        images = rows.select_columns(["image"])
        parts = []
        with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
            for some in _batches((row["image"] for row in images), AT_ONCE):
                parts.append(_hashes(pool.map(_grey_of_stored, some)))
                if bar is not None:
                    bar.update(len(some))
        return cls.joined(parts)

    @classmethod
    def of_images(cls, images: list[Image.Image]) -> "PhotoHashes":
        """Hashes of decoded photos."""
        return _hashes(map(_grey, images))

    @classmethod
    def joined(cls, parts: list["PhotoHashes"]) -> "PhotoHashes":
        """Hashes of several parts, such as all splits, one after the other."""
        empty = _hashes([])
        return cls(*(np.concatenate([getattr(part, name) for part in [empty, *parts]]) for name in vars(empty)))

    def __len__(self) -> int:
        return len(self.bits)

    def alike(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Correlation float32 [m] of the small pictures of photos int64 [m] and int64 [m]."""
        a, b = (self.small[side].astype(np.float32) for side in (first, second))
        a, b = (x - x.mean(axis=1, keepdims=True) for x in (a, b))
        norm = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
        return (a * b).sum(axis=1) / np.maximum(norm, 1e-6)


def _grey_of_stored(image: dict) -> np.ndarray | None:
    try:
        return _grey(read_image(image, draft_size=DRAFT))
    except ValueError:  # `clip-itm data check` names it
        return None


def _grey(image: Image.Image) -> np.ndarray | None:
    """float32 [32, 32], or None for an image that is tiny."""
    if min(image.size) < TINY:
        return None
    return np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float32)


def _hashes(greys) -> PhotoHashes:
    greys = list(greys)
    usable = np.array([grey is not None and grey.std() >= FLAT for grey in greys], dtype=bool)
    pixels = np.zeros((len(greys), SIDE, SIDE), dtype=np.float32)
    for place in np.flatnonzero(usable):
        pixels[place] = greys[place]
    low = _COSINES @ pixels @ _COSINES.T
    low = low.reshape(len(greys), LOW * LOW)[:, 1:]
    ones = low > np.median(low, axis=1, keepdims=True)
    bits = (ones.astype(np.uint64) << np.arange(BITS, dtype=np.uint64)).sum(axis=1, dtype=np.uint64)
    step = SIDE // SMALL
    small = pixels.reshape(len(greys), SMALL, step, SMALL, step).mean(axis=(2, 4)).round().astype(np.uint8)
    return PhotoHashes(bits, small.reshape(len(greys), SMALL * SMALL), usable)


def _batches(items, size: int) -> Iterator[list]:
    items = iter(items)
    while batch := list(islice(items, size)):
        yield batch


_COSINES = np.cos(np.pi * np.arange(LOW)[:, None] * (2 * np.arange(SIDE) + 1) / (2 * SIDE)).astype(np.float32)
