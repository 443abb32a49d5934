"""What a user may hand over as a photo or a text, and reading the photos of a gallery in batches."""

import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clip_itm.data.images import naming_photo, read_image, small_jpeg, to_rgb

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
THUMBNAIL_SIDE = 256  # longer side, pixels
LARGEST_DOWNLOAD = 64 * 2**20  # bytes of a photo behind a URL


def modality_of(value: Any) -> str:
    """ "image" or "text".

    Text that ends like the name of a photo file, and a URL, mean that photo; {"text": ...} and {"image": ...} say it.
    Raises ValueError for anything that is neither photo nor text.
    """
    if isinstance(value, dict) and len(value) == 1 and (key := next(iter(value))) in ("image", "text"):
        return key
    if isinstance(value, str):
        is_photo = value.startswith(("http://", "https://")) or value.lower().endswith(PHOTO_SUFFIXES)
        return "image" if is_photo else "text"
    if isinstance(value, Path | Image.Image | np.ndarray | bytes):
        return "image"
    raise ValueError(
        f"{type(value).__name__} is neither a text nor a photo; expected text, a path or URL of a photo, a PIL image, "
        'an array [H, W, 3] of uint8, bytes of a photo file, {"text": ...} or {"image": ...}'
    )


def read_photo(value: Any) -> Image.Image:
    """RGB from whatever `modality_of` calls a photo. Raises ValueError that names it."""
    if isinstance(value, dict) and "image" in value:
        value = value["image"]
    if isinstance(value, dict):  # a row of `datasets`: {"path", "bytes"}
        return read_image({"path": value.get("path"), "bytes": value.get("bytes")})
    if isinstance(value, str) and value.startswith(("http://", "https://")):
        return read_image({"path": value, "bytes": _download(value)})
    if isinstance(value, str | Path):
        return read_image({"path": str(value), "bytes": None})
    if isinstance(value, bytes):
        return read_image({"path": None, "bytes": value})
    if isinstance(value, np.ndarray):
        value = _from_array(value)
    if not isinstance(value, Image.Image):
        raise ValueError(f"{type(value).__name__} is no photo; expected a path, URL, PIL image, array or bytes")
    with naming_photo({"path": "a PIL image"}):
        return to_rgb(value)


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


def photo_files(folder: Path) -> list[Path]:
    """All photo files in a folder and the folders below, sorted. Raises ValueError where there are none."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder of photos")
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in PHOTO_SUFFIXES and file.is_file())
    if not files:
        raise ValueError(f"{folder}: no photos in it; expected files that end with {', '.join(PHOTO_SUFFIXES)}")
    return files


@dataclass(frozen=True)
class PhotoBatch:
    """`numbers` of the photos that could be read, their `pixels` [b, 3, H, W] (None: no photo), `thumbnails`, and
    what was wrong with the others."""

    numbers: list[int]
    pixels: Tensor | None
    thumbnails: list[bytes | None]
    problems: list[str]


class PhotoBatches(torch.utils.data.Dataset):
    """Whole batches of preprocessed photos by their numbers.

    `keeps_thumbnail(number)` says of which photos a small JPEG is wanted. Photos that cannot be read are an error, or
    with `skip_broken` are left out and told in the batch.
    """

    def __init__(self, photos: Sequence[Any], processor, keeps_thumbnail: Sequence[bool], skip_broken: bool):
        self.photos, self.processor = photos, processor
        self.keeps_thumbnail, self.skip_broken = keeps_thumbnail, skip_broken

    def __len__(self) -> int:
        return len(self.photos)

    def __getitems__(self, numbers: list[int]) -> PhotoBatch:
        read, problems = {}, []
        for number in numbers:
            try:
                read[number] = read_photo(self.photos[number])
            except ValueError as error:
                if not self.skip_broken:
                    raise
                problems.append(str(error))
        pixels = self.processor(images=list(read.values()), return_tensors="pt")["pixel_values"] if read else None
        small = [
            small_jpeg(photo, THUMBNAIL_SIDE) if self.keeps_thumbnail[number] else None
            for number, photo in read.items()
        ]
        return PhotoBatch(list(read), pixels, small, problems)
