"""The photos of all splits of a data set numbered together, their hashes kept on disk, and which are copies."""

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from torch import Tensor
from tqdm.auto import tqdm

from clip_itm.auditing.duplicates import gather, near_hashes, near_vectors, threshold_of
from clip_itm.auditing.photo_hash import SMALL, VERSION, PhotoHashes
from clip_itm.data.arrays import cached_array, new_array
from clip_itm.data.rows import Split
from clip_itm.files import DamagedError
from clip_itm.training.feature_cache import NO_ROOM, image_identities

PART = 4096  # photos in a file of hashes: at most these are lost when the program is killed
WIDTH = 8 + SMALL * SMALL + 1  # bytes of a photo: bits, small picture, whether it is usable
MOST_COMPARED = 200_000  # photos by embedding: that takes minutes, and grows with the square of their number


@dataclass(frozen=True, eq=False)
class Photos:
    """Photos of several splits, one split after the other: M in all, by a number 0..M-1. Regions have no photos.

    `splits`: by name, the audited one first, so that its photos are numbered like its rows.
    """

    splits: Mapping[str, Split]

    @classmethod
    def of(cls, splits: Mapping[str, Split], first: str) -> "Photos":
        if not has_photos(splits[first]):
            return cls({})
        rest = (name for name in splits if name != first)
        return cls({name: splits[name] for name in (first, *rest) if has_photos(splits[name])})

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def names(self) -> np.ndarray:
        """[M], the split of each photo."""
        return np.repeat(list(self.splits), [len(split) for split in self.splits.values()])

    def row(self, number: int) -> dict[str, Any]:
        """The row of a photo: `image`, `image_id`, `captions`, `caption_ids`."""
        start = 0
        for split in self.splits.values():
            if number < start + len(split):
                return split.rows[int(number) - start]
            start += len(split)
        raise IndexError(f"there is no photo {number}")

    def copies(self, folder: Path | None) -> list[np.ndarray]:
        """Groups of copies by perceptual hash, among all photos; hashes are kept in `folder` (None: not kept)."""
        if not self.splits:
            return []
        hashes = PhotoHashes.joined([kept_hashes(split, folder) for split in self.splits.values()])
        return gather(near_hashes(hashes), len(hashes))


def similar_photos(vectors: Tensor, copies: list[np.ndarray]) -> list[np.ndarray]:
    """Groups of photos whose unit `vectors` [P, D] are nearly the same, without those that are `copies` already.

    Empty for more than `MOST_COMPARED` photos.
    """
    if len(vectors) > MOST_COMPARED:
        return []
    links = near_vectors(vectors, threshold_of(vectors))
    group = np.arange(len(vectors))
    for members in copies:
        group[members[members < len(vectors)]] = members[0]
    return gather(links[group[links[:, 0]] != group[links[:, 1]]], len(vectors))


def has_photos(split: Split) -> bool:
    return len(split) > 0 and split.rows[0]["image"] is not None


def kept_hashes(split: Split, folder: Path | None) -> PhotoHashes:
    """Hashes of the photos of a split, `PART` at a time, from files in `folder` if they exist.

    A file is named by paths, sizes and times of its photos, or their bytes. Damaged files are made again.
    """
    parts = []
    with tqdm(total=len(split), desc=f"comparing photos of {split.name}", unit="photo", leave=False) as bar:
        for start in range(0, len(split), PART):
            rows = split.rows.select(range(start, min(start + PART, len(split))))
            parts.append(_part(rows, folder, bar))
            bar.update(start + len(rows) - bar.n)  # counts those that were kept
    return PhotoHashes.joined(parts)


def _part(rows: Dataset, folder: Path | None, bar: tqdm) -> PhotoHashes:
    path = None if folder is None else _file(rows, folder)
    if path is None:
        return PhotoHashes.of_rows(rows, bar=bar)
    try:
        kept = cached_array(path, len(rows))
    except DamagedError as error:
        warnings.warn(f"{error}; these photos are hashed again", stacklevel=2)
        kept = None
    if kept is not None:
        bits = np.ascontiguousarray(kept[:, :8]).view("<u8").ravel()
        return PhotoHashes(bits.astype(np.uint64), np.array(kept[:, 8:-1]), kept[:, -1] == 1)
    made = PhotoHashes.of_rows(rows, bar=bar)
    with new_array(path, np.uint8, (len(rows), WIDTH), NO_ROOM) as array:
        array[:, :8] = made.bits.astype("<u8")[:, None].view(np.uint8)
        array[:, 8:-1], array[:, -1] = made.small, made.usable
    return made


def _file(rows: Dataset, folder: Path) -> Path | None:
    """The file of these hashes; None if a photo is missing, which may be there next time."""
    try:
        own = image_identities(rows)
    except OSError:
        return None
    return folder / f"photos-{hashlib.sha256(f'{VERSION} {own}'.encode()).hexdigest()[:32]}.npy"
