"""Reading the images of a gallery in batches, and hashes by which an unchanged one is recognised later."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from PIL import Image
from torch import Tensor

from clip_itm.data.image_names import IMAGE_SUFFIXES, FoundImages, find_images
from clip_itm.data.images import naming_image, small_jpeg
from clip_itm.data.inputs import URLS, decode_image, fetch_image

THUMBNAIL_SIDE = 256  # longer side, pixels


def content_of(image: dict | np.ndarray | Image.Image) -> int:
    """XXH3-64 of what `fetch_image` returns: equal for equal files and, without a file, for equal pixels."""
    if isinstance(image, dict):
        return xxhash.xxh3_64_intdigest(image["bytes"])
    with naming_image({"path": "a PIL image"}):
        pixels = np.asarray(image)
        kind = image.mode if isinstance(image, Image.Image) else "array"
    return xxhash.xxh3_64_intdigest(f"{kind} {pixels.shape} {pixels.dtype}".encode() + pixels.tobytes())


def stamp_of(path: str | None) -> int | None:
    """XXH3-64 of the size and the times of a file: if it is the same, so is the content. None without a file."""
    if path is None or path.startswith(URLS):
        return None
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return xxhash.xxh3_64_intdigest(f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}".encode())


def image_files(folder: Path) -> FoundImages:
    """All image files in a folder and the folders below it. Raises ValueError if there are none."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder of photos")
    found = find_images(folder)
    if not found.files:
        skipped = f" (left out: {'; '.join(found.skipped[:3])})" if found.skipped else ""
        raise ValueError(
            f"{folder}: no photos in it{skipped}; expected files that end with {', '.join(IMAGE_SUFFIXES)}"
        )
    return found


@dataclass(frozen=True)
class ReadImage:
    """An image of a gallery by its `row`: a small JPEG, if wanted, and what shows later that it has not changed."""

    row: int
    thumbnail: bytes | None
    content: int
    stamp: int | None


@dataclass(frozen=True)
class ImageBatch:
    """`images` that could be read, their `inputs`, such as pixels [b, 3, H, W] (None: no image), and by row what is
    wrong with the others."""

    images: list[ReadImage]
    inputs: dict[str, Tensor] | None
    problems: dict[int, str]


class ImageBatches(torch.utils.data.Dataset):
    """Whole batches of preprocessed images by row.

    `paths`: the file of each image, or None. `thumbnails`: keep a small JPEG of each (otherwise only of images without
    a file). An image that cannot be read is a ValueError or, with `skip_broken`, left out and named in the batch.
    """

    def __init__(
        self, images: Sequence[Any], paths: Sequence[str | None], processor, thumbnails: bool, skip_broken: bool
    ):
        self.images, self.paths, self.processor = images, paths, processor
        self.thumbnails, self.skip_broken = thumbnails, skip_broken

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, rows: list[int]) -> ImageBatch:
        read, images, problems = [], [], {}
        for row in rows:
            path = self.paths[row]
            try:
                stamp = stamp_of(path)  # before it is read, so that a file written meanwhile looks changed
                fetched = fetch_image(self.images[row])
                image = decode_image(fetched)
            except ValueError as error:
                if not self.skip_broken:
                    raise
                problems[row] = str(error)
                continue
            images.append(image)
            small = small_jpeg(image, THUMBNAIL_SIDE) if self.thumbnails or path is None else None
            read.append(ReadImage(row, small, content_of(fetched), stamp))
        inputs = dict(self.processor(images=images, return_tensors="pt")) if images else None
        return ImageBatch(read, inputs, problems)
