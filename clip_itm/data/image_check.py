"""Finds all images that cannot be read, before anything depends on them.

Each is decoded once, in threads, by the code that reads it in training (a JPEG at an eighth of its size: the whole file
is read, but few pixels are computed). Sound images are recorded, so that the next start only looks at sizes and
modification times.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import PIL
import xxhash
from datasets import Dataset
from PIL import Image
from tqdm.auto import tqdm

from clip_itm.data import images
from clip_itm.data.images import UnreadableImageError, read_image
from clip_itm.data.tar_members import tar_member

BLOCK = 64  # images that a thread takes at once


class ImageChecker(Protocol):
    """Knows which images are readable already, and finds out about the others.

    There are two: `ReadImages`, and the cache of resized images, which decodes them anyway.
    """

    description: str  # what it does, for the progress bar

    def is_ready(self, image: dict) -> bool:
        """Whether a stored image was read before, unchanged."""

    def failures(self, images: Sequence[dict]) -> list[str | None]:
        """For each image, a sentence that names it and says why it cannot be read; None for those that can."""


class ReadImages:
    """An `ImageChecker` that decodes images and keeps a list of those that could be read, in the folder of all caches.

    An image in a file is known by its path, size, modification time and permissions, a stored one by its bytes. Lists
    from other versions of Pillow or of this package's reader are ignored. Broken images are decoded again every time.
    """

    description = "checking photos"

    def __init__(self, cache_folder: Path):
        reader = f"{PIL.__version__} {find_spec('pillow_heif')} {Image.MAX_IMAGE_PIXELS}".encode()
        code = hashlib.sha256(Path(images.__file__).read_bytes() + reader).hexdigest()[:16]
        self.file = cache_folder / "read_photos" / f"{code}.txt"
        try:
            self.known = {line for line in self.file.read_bytes().split(b"\n") if len(line) == 32}
        except OSError:  # the first time
            self.known = set()

    def is_ready(self, image: dict) -> bool:
        """Whether a stored image was read before, unchanged."""
        return image_identity(image) in self.known

    def failures(self, images: Sequence[dict]) -> list[str | None]:
        """Decode each image; None, or a sentence that names it and says why it cannot be read."""
        found, whole = [], []
        for image in images:
            identity = image_identity(image)  # before decoding: the image may be replaced meanwhile
            try:
                read_image(image, draft_size=1)
            except UnreadableImageError as error:
                found.append(str(error))
            else:
                found.append(None)
                whole.append(identity)
        self.keep(whole)
        return found

    def keep(self, identities: Sequence[bytes | None]) -> None:
        """Record images that could be read, in a single write, so that several threads and processes may do this."""
        lines = {identity for identity in identities if identity is not None} - self.known
        if not lines:
            return
        self.known |= lines
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("ab", buffering=0) as file:
                file.write(b"".join(line + b"\n" for line in sorted(lines)))
        except OSError:  # a full disk, a cache that cannot be written: the next start decodes them again
            pass


def find_unreadable(rows: Dataset, checker: ImageChecker, workers: int = 0, progress: bool = True) -> dict[int, str]:
    """{row: why its image cannot be read}, in row order, of the unreadable images of `rows`.

    `workers` threads (0: one per core) decode what `checker` does not know yet.
    """
    rows = rows.select_columns(["image", "image_id"])
    waiting = [index for index, image in enumerate(_images(rows)) if not checker.is_ready(image)]
    blocks = [waiting[start : start + BLOCK] for start in range(0, len(waiting), BLOCK)]
    broken = {}
    if not waiting:
        return broken
    with (
        ThreadPoolExecutor(workers or os.cpu_count()) as pool,
        tqdm(desc=checker.description, total=len(waiting), delay=1, disable=not progress) as bar,
    ):
        try:
            found = pool.map(lambda block: checker.failures(_named(rows, block)), blocks)
            for block, failures in zip(blocks, found, strict=True):
                broken |= {index: failure for index, failure in zip(block, failures, strict=True) if failure}
                bar.update(len(block))
        except BaseException:  # a full disk or Ctrl-C: do not work through the rest before saying so
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return broken


def _images(rows: Dataset) -> Iterator[dict]:
    """The stored images one by one; bytes are buffers of Arrow, which costs no copy."""
    for batch in rows.select_columns(["image"]).with_format("arrow").iter(batch_size=BLOCK):
        image = batch["image"].combine_chunks()
        for path, content in zip(image.field("path").to_pylist(), image.field("bytes"), strict=True):
            yield {"path": path, "bytes": content.as_buffer()}


def _named(rows: Dataset, indices: list[int]) -> list[dict]:
    return [row["image"] | {"path": image_name(row)} for row in (rows[index] for index in indices)]


def image_name(row: dict) -> str:
    """The name of a row's image for messages: its file or, if it is stored without a name, its id."""
    return row["image"]["path"] or f"photo {row['image_id']}"


def image_identity(image: dict) -> bytes | None:
    """32 characters that identify the content of an image; None if the file does not exist."""
    if image["bytes"] is not None:
        return xxhash.xxh3_128_hexdigest(image["bytes"]).encode()
    if (member := tar_member(image["path"])) is not None:
        return xxhash.xxh3_128_hexdigest(member.identity.encode()).encode()
    try:
        status = os.stat(image["path"])
    except (OSError, ValueError):
        return None
    identity = f"{os.path.abspath(image['path'])}\n{status.st_size} {status.st_mtime_ns} {status.st_mode}"
    return xxhash.xxh3_128_hexdigest(identity.encode(errors="surrogateescape")).encode()
