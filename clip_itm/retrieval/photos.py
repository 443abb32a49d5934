"""What a user may hand over as a photo or a text, and reading the photos of a gallery in batches."""

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

from clip_itm.data.images import naming_photo, photo_bytes, read_image, small_jpeg, to_rgb
from clip_itm.data.photo_names import PHOTO_SUFFIXES, FoundPhotos, find_photos, is_photo_name

URLS = ("http://", "https://")
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
        return "image" if value.startswith(URLS) or is_photo_name(value) else "text"
    if isinstance(value, Path | Image.Image | np.ndarray | bytes):
        return "image"
    raise ValueError(
        f"{type(value).__name__} is neither a text nor a photo; expected text, a path or URL of a photo, a PIL image, "
        'an array [H, W, 3] of uint8, bytes of a photo file, {"text": ...} or {"image": ...}'
    )


def read_photo(value: Any) -> Image.Image:
    """RGB from whatever `modality_of` calls a photo. Raises ValueError that names it."""
    return decode_photo(fetch_photo(value))


def fetch_photo(value: Any) -> dict | np.ndarray | Image.Image:
    """A photo that is encoded as {"path", "bytes"}, read from its file or URL; one that is decoded as it is."""
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
        with naming_photo(image):
            return {**image, "bytes": photo_bytes(image)}
    if isinstance(value, np.ndarray | Image.Image):
        return value
    raise ValueError(f"{type(value).__name__} is no photo; expected a path, URL, PIL image, array or bytes")


def decode_photo(photo: dict | np.ndarray | Image.Image) -> Image.Image:
    """RGB of what `fetch_photo` gives."""
    if isinstance(photo, dict):
        return read_image(photo)
    with naming_photo({"path": "a PIL image"}):
        return to_rgb(photo if isinstance(photo, Image.Image) else _from_array(photo))


def content_of(photo: dict | np.ndarray | Image.Image) -> int:
    """XXH3-64 of what `fetch_photo` gives: equal for the same file, and for the same pixels where there is none."""
    if isinstance(photo, dict):
        return xxhash.xxh3_64_intdigest(photo["bytes"])
    with naming_photo({"path": "a PIL image"}):
        pixels = np.asarray(photo)
        kind = photo.mode if isinstance(photo, Image.Image) else "array"
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


def photo_files(folder: Path) -> FoundPhotos:
    """All photo files in a folder and the folders below. Raises ValueError where there are none."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder of photos")
    found = find_photos(folder)
    if not found.files:
        left_out = f" (left out: {'; '.join(found.left_out[:3])})" if found.left_out else ""
        raise ValueError(
            f"{folder}: no photos in it{left_out}; expected files that end with {', '.join(PHOTO_SUFFIXES)}"
        )
    return found


@dataclass(frozen=True)
class ReadPhoto:
    """A photo of a gallery by its `number`: a small JPEG, if it is wanted, and what tells that it is the same later."""

    number: int
    thumbnail: bytes | None
    content: int
    stamp: int | None


@dataclass(frozen=True)
class PhotoBatch:
    """`photos` that could be read, their `pixels` [b, 3, H, W] (None: no photo), and what is wrong with the others, by
    their numbers."""

    photos: list[ReadPhoto]
    pixels: Tensor | None
    problems: dict[int, str]


class PhotoBatches(torch.utils.data.Dataset):
    """Whole batches of preprocessed photos by their numbers.

    `paths`: the file of each photo, None where there is none. `thumbnails`: keep a small JPEG of each (else only where
    there is no file). Photos that cannot be read are an error, or with `skip_broken` are left out and told in the
    batch.
    """

    def __init__(
        self, photos: Sequence[Any], paths: Sequence[str | None], processor, thumbnails: bool, skip_broken: bool
    ):
        self.photos, self.paths, self.processor = photos, paths, processor
        self.thumbnails, self.skip_broken = thumbnails, skip_broken

    def __len__(self) -> int:
        return len(self.photos)

    def __getitems__(self, numbers: list[int]) -> PhotoBatch:
        read, images, problems = [], [], {}
        for number in numbers:
            path = self.paths[number]
            try:
                stamp = stamp_of(path)  # before it is read: what is written meanwhile then looks new, not old
                fetched = fetch_photo(self.photos[number])
                image = decode_photo(fetched)
            except ValueError as error:
                if not self.skip_broken:
                    raise
                problems[number] = str(error)
                continue
            images.append(image)
            small = small_jpeg(image, THUMBNAIL_SIDE) if self.thumbnails or path is None else None
            read.append(ReadPhoto(number, small, content_of(fetched), stamp))
        pixels = self.processor(images=images, return_tensors="pt")["pixel_values"] if images else None
        return PhotoBatch(read, pixels, problems)
