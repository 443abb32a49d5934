"""Which files of a folder are photos: one rule for everything that looks for them."""

import os
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from PIL import features

PHOTO_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".avif", ".heic", ".heif"),
)
# what file managers and archives put beside photos; whatever begins with a dot (._photo.jpg, .DS_Store) belongs to it
NO_PHOTOS = ("__macosx", "@eadir", "$recycle.bin", "system volume information", "thumbs.db", "desktop.ini")


@dataclass
class FoundPhotos:
    """`files` in the order of their paths; `left_out`, a sentence for each that looks like a photo and cannot be read.

    A name that is not UTF-8 is among the files all the same: `is_utf8` tells.
    """

    files: list[Path] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def find_photos(folder: str | Path) -> FoundPhotos:
    """The photos in `folder` and below, also behind links.

    Hidden files and folders and the litter of other programs are passed over. A folder that is reached in two ways (a
    link to a folder within, or around in a circle) is read once, under its own name before any link's.
    """
    found = FoundPhotos()
    seen: set[tuple[int, int]] = set()
    waiting, links = [Path(folder)], []
    while waiting or links:
        place = waiting.pop() if waiting else links.pop(0)
        try:
            status = place.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(place) as entries:
                entries = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            found.left_out.append(f"{printable(place)}: this folder cannot be read ({error.strerror})")
            continue
        for entry in entries:
            if is_litter(entry.name):
                continue
            path = place / entry.name
            if os.path.isdir(path):  # unlike entry.is_dir(), it knows links that lead to themselves
                (links if entry.is_symlink() else waiting).append(path)
            elif is_photo_name(entry.name):
                if reason := _why_not(path):
                    found.left_out.append(f"{printable(path)}: {reason}")
                else:
                    found.files.append(path)
    found.files.sort()
    found.left_out.sort()
    return found


def is_photo_name(name: str) -> bool:
    """Whether a name ends like that of a photo, in either case."""
    return name.lower().endswith(PHOTO_SUFFIXES)


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name belongs to a file manager or an archive, or is hidden."""
    return name.startswith(".") or name.lower() in NO_PHOTOS


def is_utf8(name: str | Path) -> bool:
    """Whether a name can be stored as text; Python reads bytes that are not UTF-8 as lone surrogates."""
    try:
        str(name).encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(name: str | Path) -> str:
    r"""A name as it can be shown and stored: bytes that are not UTF-8 as \xff."""
    return str(name).encode(errors="backslashreplace").decode().replace(r"\udc", r"\x")


def missing_decoder(name: str) -> str | None:
    """What to install to read a photo of this name, or None where nothing is known to be lacking."""
    suffix = Path(name).suffix.lower()
    if suffix in (".heic", ".heif") and find_spec("pillow_heif") is None:
        return f"{suffix[1:].upper()} photos need the package pillow-heif (pip install pillow-heif)"
    if suffix == ".avif" and not features.check("avif"):
        return "AVIF photos need Pillow 11.3 or newer (pip install --upgrade pillow)"
    return None


def _why_not(path: Path) -> str | None:
    if not os.path.exists(path):
        return "the link leads nowhere"
    if not os.path.isfile(path):
        return "this is no regular file"
    return missing_decoder(path.name)
