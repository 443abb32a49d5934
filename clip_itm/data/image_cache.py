"""Images resized once to a given short side: decoding them is several times cheaper than decoding the originals.

The folder is a cache in the strict sense: deleting it loses nothing, and an entry is named after the original's path,
size and modification time, so that a changed original is simply another entry. Every entry ends with a checksum; a
damaged one is made again when it is read.
"""

import hashlib
import os
import warnings
from collections.abc import Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

from datasets import Dataset
from PIL import Image

from clip_itm.data.image_check import find_unreadable
from clip_itm.data.images import UnreadableImageError, naming_image, open_image, to_rgb
from clip_itm.data.tar_members import tar_member
from clip_itm.files import clear_temporary, temporary_name
from clip_itm.seal import image_in, sealed
from clip_itm.visible import counted


class ImageCache:
    """Copies of images with a short side of `short_side` pixels, in `folder`/<short_side>/.

    Images that are not larger stay as they are (an empty entry says so). JPEGs become JPEGs of quality 95 without
    chroma subsampling, everything else becomes PNG; all are upright RGB. Files appear whole (written under a temporary
    name and renamed), so the next build resumes an interrupted one, and several processes may build one folder.
    """

    def __init__(self, folder: str | Path, short_side: int):
        self.folder = Path(folder) / str(short_side)
        self.short_side = short_side
        self._cleared: set[Path] = set()  # folders without leftovers of killed writers
        self.description = f"resizing photos to {short_side} px"

    def image(self, image: dict[str, Any]) -> dict[str, Any]:
        """What to read for a stored `image` ({"path", "bytes"}): its copy, or `image` if there is none."""
        try:
            entry = self._entry(image)
            data = entry.read_bytes()
        except OSError:  # no copy, or no original either: reading the image says so
            return image
        copy = image_in(data)
        if copy is None:
            warnings.warn(f"{entry}: this resized photo is damaged; it is made again", stacklevel=2)
            with suppress(Exception):  # an original that can no longer be decoded: reading it says so
                copy = self._resized(image)
            if copy is not None:
                with suppress(OSError):  # a cache that cannot be written
                    self._write(entry, copy)
        return {"path": str(entry), "bytes": copy} if copy else image

    def build(self, rows: Dataset, num_workers: int = 0) -> None:
        """Make all missing copies of the images of `rows`, in threads (0: one per core).

        Raises ValueError naming the images that cannot be read (count and first twenty), or the folder if it cannot be
        written.
        """
        if broken := find_unreadable(rows, self, num_workers):
            raise ValueError(
                f"{counted(len(broken), 'photo cannot', 'photos cannot')} be read:\n  "
                + "\n  ".join([*broken.values()][:20])
            )

    def is_ready(self, image: dict[str, Any]) -> bool:
        """Whether the copy of a stored image exists, or is known not to be needed."""
        try:
            return self._entry(image).stat().st_size > 0
        except OSError:  # no such image: making its copy says so
            return False

    def failures(self, images: Sequence[dict[str, Any]]) -> list[str | None]:
        """Make the copies of stored images; for each, None or a sentence that names it and says what failed."""
        return [self._make(image) for image in images]

    def _entry(self, image: dict[str, Any]) -> Path:
        """The file for an image, named after the original's path, size and modification time, or after its bytes."""
        if image["bytes"] is not None:
            identity = image["bytes"]
        elif (member := tar_member(image["path"])) is not None:
            identity = member.identity.encode()
        else:
            status = os.stat(image["path"])
            identity = f"{os.path.abspath(image['path'])}\n{status.st_size} {status.st_mtime_ns}".encode()
        name = hashlib.blake2b(identity, digest_size=16).hexdigest()
        return self.folder / name[:2] / name[2:]

    def _make(self, image: dict[str, Any]) -> str | None:
        """Write the copy of one image; returns the reason if it cannot be read."""
        try:
            with naming_image(image):
                entry, content = self._entry(image), self._resized(image)
        except UnreadableImageError as error:
            return str(error)
        try:
            self._write(entry, content)
        except OSError as error:
            raise ValueError(
                f"cannot write resized photos to {self.folder}: {error.strerror}; set data.cache_dir to a folder with "
                "room that may be written, or leave data.cache_images out"
            ) from error
        return None

    def _write(self, entry: Path, content: bytes) -> None:
        temporary = entry.with_name(temporary_name(entry.name))
        try:
            if entry.parent not in self._cleared:
                entry.parent.mkdir(parents=True, exist_ok=True)
                clear_temporary(entry.parent)
                self._cleared.add(entry.parent)
            temporary.write_bytes(sealed(content))
            os.replace(temporary, entry)
        finally:
            with suppress(OSError):
                temporary.unlink()

    def _resized(self, image: dict[str, Any]) -> bytes:
        """The encoded copy; empty if the image is not larger than that."""
        original = open_image(image)
        if min(original.size) <= self.short_side:
            to_rgb(original)  # a truncated image is found now, not in the middle of training
            return b""
        is_jpeg = original.format in ("JPEG", "MPO")
        resized = to_rgb(original)
        scale = self.short_side / min(resized.size)
        size = [max(self.short_side, round(side * scale)) for side in resized.size]
        resized = resized.resize(size, Image.Resampling.BICUBIC)
        encoded = BytesIO()
        if is_jpeg:
            resized.save(encoded, "JPEG", quality=95, subsampling=0)
        else:
            resized.save(encoded, "PNG", compress_level=1)
        return encoded.getvalue()
