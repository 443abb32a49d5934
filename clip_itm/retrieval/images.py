"""What a user may hand over as an image or a text, and reading the images of a gallery in batches."""

import os
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from PIL import Image
from torch import Tensor

from clip_itm.data.image_names import IMAGE_SUFFIXES, FoundImages, find_images, is_image_name
from clip_itm.data.images import image_bytes, naming_image, read_image, small_jpeg, to_rgb

URLS = ("http://", "https://")
THUMBNAIL_SIDE = 256  # longer side, pixels
LARGEST_DOWNLOAD = 64 * 2**20  # bytes of an image behind a URL


def modality_of(value: Any) -> str:
    """ "image" or "text".

    Text that ends like the name of an image file, and a URL, mean that image; {"text": ...} and {"image": ...} say it.
    Raises ValueError for anything that is neither image nor text.
    """
    if isinstance(value, dict) and len(value) == 1 and (key := next(iter(value))) in ("image", "text"):
        return key
    if isinstance(value, str):
        return "image" if value.startswith(URLS) or is_image_name(value) else "text"
    if isinstance(value, Path | Image.Image | np.ndarray | bytes):
        return "image"
    raise ValueError(
        f"{type(value).__name__} is neither a text nor a photo; expected text, a path or URL of a photo, a PIL image, "
        'an array [H, W, 3] of uint8, bytes of a photo file, {"text": ...} or {"image": ...}'
    )


def load_image(value: Any) -> Image.Image:
    """RGB from whatever `modality_of` calls an image. Raises ValueError that names it."""
    return decode_image(fetch_image(value))


def fetch_image(value: Any) -> dict | np.ndarray | Image.Image:
    """An image that is encoded as {"path", "bytes"}, read from its file or URL; one that is decoded as it is."""
    if isinstance(value, dict) and "image" in value:
        value = value["image"]
    if isinstance(value, str) and value.startswith(URLS):
        return {"path": value, "bytes": _download(value)}
    if isinstance(value, bytes):
        return {"path": None, "bytes": value}
    if isinstance(value, str | Path):
        value = {"path": str(value)}
    if isinstance(value, dict):  # also a row of `datasets`
        image = {"path": value.get("path"), "bytes": value.get("bytes")}
        with naming_image(image):
            return {**image, "bytes": image_bytes(image)}
    if isinstance(value, np.ndarray | Image.Image):
        return value
    raise ValueError(f"{type(value).__name__} is no photo; expected a path, URL, PIL image, array or bytes")


def decode_image(image: dict | np.ndarray | Image.Image) -> Image.Image:
    """RGB of what `fetch_image` gives."""
    if isinstance(image, dict):
        return read_image(image)
    with naming_image({"path": "a PIL image"}):
        return to_rgb(image if isinstance(image, Image.Image) else _from_array(image))


def content_of(image: dict | np.ndarray | Image.Image) -> int:
    """XXH3-64 of what `fetch_image` gives: equal for the same file, and for the same pixels where there is none."""
    if isinstance(image, dict):
        return xxhash.xxh3_64_intdigest(image["bytes"])
    with naming_image({"path": "a PIL image"}):
        pixels = np.asarray(image)
        kind = image.mode if isinstance(image, Image.Image) else "array"
    return xxhash.xxh3_64_intdigest(f"{kind} {pixels.shape} {pixels.dtype}".encode() + pixels.tobytes())


def stamp_of(path: str | None) -> int | None:
    """XXH3-64 of the size and the times of a file: where it is the same, so is the content. None without a file."""
    if path is None or path.startswith(URLS):
        return None
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return xxhash.xxh3_64_intdigest(f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}".encode())


def _from_array(array: np.ndarray) -> Image.Image:
    channels = array.shape[2] if array.ndim == 3 else 1 if array.ndim == 2 else 0
    if array.dtype != np.uint8 or channels not in (1, 3, 4):
        raise ValueError(
            f"an array {list(array.shape)} of {array.dtype} is no photo; expected [H, W, 3] (or [H, W], [H, W, 4]) of "
            "uint8, values 0 to 255"
        )
    return Image.fromarray(array[:, :, 0] if array.ndim == 3 and channels == 1 else array)


def _download(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            data = answer.read(LARGEST_DOWNLOAD + 1)
    except (OSError, ValueError) as error:
        raise ValueError(f"{url}: cannot get this photo: {error}") from None
    if len(data) > LARGEST_DOWNLOAD:
        raise ValueError(f"{url}: more than {LARGEST_DOWNLOAD // 2**20} MiB, which is too much for a photo")
    return data


def image_files(folder: Path) -> FoundImages:
    """All image files in a folder and the folders below. Raises ValueError where there are none."""
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
    """An image of a gallery by its `row`: a small JPEG, if it is wanted, and what tells that it is the same later."""

    row: int
    thumbnail: bytes | None
    content: int
    stamp: int | None


@dataclass(frozen=True)
class ImageBatch:
    """`images` that could be read, their `pixels` [b, 3, H, W] (None: no image), and what is wrong with the others, by
    their numbers."""

    images: list[ReadImage]
    pixels: Tensor | None
    problems: dict[int, str]


class ImageBatches(torch.utils.data.Dataset):
    """Whole batches of preprocessed images by their numbers.

    `paths`: the file of each image, None where there is none. `thumbnails`: keep a small JPEG of each (else only where
    there is no file). Images that cannot be read are an error, or with `skip_broken` are left out and told in the
    batch.
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
                stamp = stamp_of(path)  # before it is read: what is written meanwhile then looks new, not old
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
        pixels = self.processor(images=images, return_tensors="pt")["pixel_values"] if images else None
        return ImageBatch(read, pixels, problems)
