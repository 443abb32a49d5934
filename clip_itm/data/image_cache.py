"""Photos resized once to a short side: decoding them is several times cheaper than decoding the originals.

The folder is a cache in the strict sense: deleting it loses nothing, and an entry is named by the original's path,
size and time of change, so that a changed original is simply another entry.
"""

import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

from datasets import Dataset
from PIL import Image
from tqdm.auto import tqdm

from clip_itm.data.images import naming_photo, open_image, to_rgb


class ImageCache:
    """Copies of photos with the short side `short_side` pixels, in `folder`/<short_side>/.

    Photos that are not larger stay as they are (an empty file says so). JPEGs become JPEGs of quality 95 without
    chroma subsampling, everything else becomes PNG; all are upright RGB. Files appear whole (written aside, then
    renamed), so an interrupted build is continued by the next one and several processes may build the same folder.
    """

    def __init__(self, folder: str | Path, short_side: int):
        self.folder = Path(folder) / str(short_side)
        self.short_side = short_side

    def image(self, image: dict[str, Any]) -> dict[str, Any]:
        """What to read for a stored `image` (a dict with `path` and `bytes`): its copy, or itself if there is none."""
        try:
            entry = self._entry(image)
            has_copy = entry.stat().st_size > 0
        except OSError:  # no copy, or no original either: reading the photo says so
            return image
        return {"path": str(entry), "bytes": None} if has_copy else image

    def build(self, rows: Dataset, num_workers: int = 0) -> None:
        """Make all missing copies of the photos of `rows`, in threads (0: one per core).

        Raises ValueError naming all photos that cannot be read (count and first twenty), or the folder when it cannot
        be written.
        """
        images = rows.select_columns(["image"])
        missing = [number for number, row in enumerate(images) if not self._is_made(row["image"])]
        if not missing:
            return
        with ThreadPoolExecutor(num_workers or os.cpu_count()) as pool:
            made = pool.map(lambda number: self._make(images[number]["image"]), missing)
            try:
                bar = tqdm(made, total=len(missing), desc=f"resizing photos to {self.short_side} px")
                failures = [failure for failure in bar if failure]
            except BaseException:  # a full disk or Ctrl-C: do not work through the rest before saying so
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        if failures:
            raise ValueError(
                f"{len(failures)} photos cannot be read:\n  " + "\n  ".join(failures[:20]) + "\n"
                "`clip-itm data check RECIPE --json FILE` names all of them"
            )

    def _entry(self, image: dict[str, Any]) -> Path:
        """The file for a photo, named by the original's path, size and time of change, or by its bytes."""
        if image["bytes"] is not None:
            identity = image["bytes"]
        else:
            status = os.stat(image["path"])
            identity = f"{os.path.abspath(image['path'])}\n{status.st_size} {status.st_mtime_ns}".encode()
        name = hashlib.blake2b(identity, digest_size=16).hexdigest()
        return self.folder / name[:2] / name[2:]

    def _is_made(self, image: dict[str, Any]) -> bool:
        try:
            return self._entry(image).exists()
        except OSError:  # no such photo: building it reports that, together with all others
            return False

    def _make(self, image: dict[str, Any]) -> str | None:
        """Write the copy of one photo; the reason, naming it, if it cannot be read."""
        try:
            with naming_photo(image):
                entry, content = self._entry(image), self._resized(image)
        except ValueError as error:
            return str(error)
        temporary = entry.with_name(f".{entry.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            entry.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content)
            os.replace(temporary, entry)
        except OSError as error:
            raise ValueError(
                f"cannot write resized photos to {self.folder}: {error.strerror}; set data.cache_dir to a folder with "
                "room that may be written, or leave data.cache_images out"
            ) from error
        return None

    def _resized(self, image: dict[str, Any]) -> bytes:
        """The encoded copy; nothing where the photo is not larger than that."""
        original = open_image(image)
        if min(original.size) <= self.short_side:
            original.load()  # a truncated photo is found now, not in the middle of training
            return b""
        is_jpeg = original.format in ("JPEG", "MPO")
        photo = to_rgb(original)
        scale = self.short_side / min(photo.size)
        size = [max(self.short_side, round(side * scale)) for side in photo.size]
        photo = photo.resize(size, Image.Resampling.BICUBIC)
        encoded = BytesIO()
        if is_jpeg:
            photo.save(encoded, "JPEG", quality=95, subsampling=0)
        else:
            photo.save(encoded, "PNG", compress_level=1)
        return encoded.getvalue()
