"""Precomputed region features instead of images: memory-mapped, so that a batch reads its rows, never a whole file.

`sources/regions.py` describes the layout of the files. (This is a separate module because `datasets` replaces `np.load`
in the modules of its builders by one that cannot map files.)
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

SAMPLED = 64  # rows of a feature file that represent its content


@dataclass(frozen=True)
class RegionFeatures:
    """The regions of one split; `batch` is the only way to read them.

    Image p of the split is image `images[p]` of the files, caption c is caption `captions[c]`; the features of an image
    are in row `images[p] * rows_per_image` of `file`. `image_file` and `caption_file` hold vectors of another model.
    """

    file: Path
    rows_per_image: int
    images: np.ndarray
    captions: np.ndarray
    image_file: Path | None = None
    caption_file: Path | None = None

    @cached_property
    def features(self) -> np.ndarray:
        """The mapped file [rows, R, C]; `images` and `rows_per_image` say which rows belong to the split."""
        return mapped(self.file)

    @cached_property
    def image_vectors(self) -> np.ndarray | None:
        """Vectors of another model [images of the file, G]; None if there are none."""
        return None if self.image_file is None else mapped(self.image_file)

    @cached_property
    def caption_vectors(self) -> np.ndarray | None:
        """Vectors of another model [captions of the split, G]; None if there are none."""
        if self.caption_file is None:
            return None
        vectors, count = mapped(self.caption_file), len(self.captions)
        return vectors[:count] if np.array_equal(self.captions, np.arange(count)) else vectors[self.captions]

    def batch(self, images: np.ndarray) -> dict[str, Tensor]:
        """`image_tokens` float32 [P, R, C] and `image_mask` bool [P, R] of images int64 [P] of the split.

        A region of zeros is padding. If there are vectors, `image_features` float32 [P, G] too.
        """
        indices = self.images[images]
        tokens = torch.from_numpy(self.features[indices * self.rows_per_image].astype(np.float32, copy=False))
        found = {"image_tokens": tokens, "image_mask": (tokens != 0).any(dim=-1)}
        if self.image_vectors is not None:
            found["image_features"] = torch.from_numpy(self.image_vectors[indices].astype(np.float32, copy=False))
        return found

    def caption_batch(self, captions: np.ndarray) -> dict[str, Tensor]:
        """`text_features` float32 [B, G] of captions int64 [B] of the split; empty if there are no vectors."""
        if self.caption_vectors is None:
            return {}
        return {"text_features": torch.from_numpy(self.caption_vectors[captions].astype(np.float32))}

    def select(self, images: np.ndarray, captions: np.ndarray) -> "RegionFeatures":
        """The regions of some images int64 [P] and captions int64 [B] of the split."""
        return replace(self, images=self.images[images], captions=self.captions[captions])

    @cached_property
    def identity(self) -> list[str]:
        """What the hash of a split covers: name, shape and type of every file, and 64 rows spread over it."""
        return [_identity(file) for file in (self.file, self.image_file, self.caption_file) if file is not None]

    def damaged(self, block: int = 256) -> Iterator[tuple[int, list[int]]]:
        """For every block of the split: its number of images, and the indices of those all zero or not all finite.

        Reads all features.
        """
        for start in range(0, len(self.images), block):
            tokens = self.batch(np.arange(start, min(start + block, len(self.images))))["image_tokens"].flatten(1)
            is_damaged = ~tokens.isfinite().all(dim=1) | (tokens == 0).all(dim=1)
            yield len(tokens), (start + is_damaged.nonzero()[:, 0]).tolist()

    def __getstate__(self) -> dict:
        # a process that gets a copy maps the files itself; a pickled map would be the whole file
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def mapped(file: Path) -> np.ndarray:
    """The array of a .npy file, memory-mapped; ValueError for anything else."""
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise ValueError(f"{file}: there is no such file (docs/regions.md has the layout)") from None
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{file}: no array of numpy that can be mapped ({error})") from None


def _identity(file: Path) -> str:
    array = mapped(file)
    rows = np.unique(np.linspace(0, len(array) - 1, SAMPLED).astype(np.int64))
    digest = hashlib.sha256()
    for row in rows:
        digest.update(array[row].tobytes())
    return f"{file.name} {array.shape} {array.dtype.str} {digest.hexdigest()}"


def require_repeated_rows(file: Path, array: np.ndarray, rows_per_image: int) -> None:
    """Raise ValueError if rows that should repeat one image differ: then the captions belong to several images."""
    if rows_per_image == 1:
        return
    for image in np.unique(np.linspace(0, len(array) // rows_per_image - 1, SAMPLED).astype(np.int64)):
        row = int(image) * rows_per_image
        if not np.array_equal(array[row], array[row + rows_per_image - 1]):
            raise ValueError(
                f"{file}: rows {row} and {row + rows_per_image - 1} differ, though {rows_per_image} captions in a row "
                "belong to one photo; set data.captions_per_image (CC152K: 1)"
            )
