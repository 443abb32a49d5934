"""Which files of a folder are images: one rule for everything that searches folders."""

import os
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from PIL import features

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".avif", ".heic", ".heif"),
)
# what file managers and archives put next to images, besides names that begin with a dot (._image.jpg, .DS_Store)
NO_IMAGES = ("__macosx", "@eadir", "$recycle.bin", "system volume information", "thumbs.db", "desktop.ini")


@dataclass
class FoundImages:
    """`files` in the order of their paths; `skipped`, a sentence for each that looks like an image but cannot be read.

    Names that are not UTF-8 are among the files too; check them with `is_utf8`.
    """

    files: list[Path] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def find_images(folder: str | Path) -> FoundImages:
    """The images in `folder` and below, following links.

    Hidden files and folders and the litter of other programs are skipped. A folder that can be reached in two ways (a
    link to a folder within, or a cycle) is read once, under its own name rather than a link's.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("dog.jpg", "cat.PNG", "notes.txt", "._dog.jpg"):
        ...         (Path(folder) / name).touch()
        ...     [file.name for file in find_images(folder).files]
        ['cat.PNG', 'dog.jpg']
    """
    found = FoundImages()
    seen: set[tuple[int, int]] = set()
    waiting, links = [Path(folder)], []
    while waiting or links:
        path_of_folder = waiting.pop() if waiting else links.pop(0)
        try:
            status = path_of_folder.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(path_of_folder) as entries:
                entries = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            found.skipped.append(f"{printable(path_of_folder)}: this folder cannot be read ({error.strerror})")
            continue
        for entry in entries:
            if is_litter(entry.name):
                continue
            path = path_of_folder / entry.name
            if os.path.isdir(path):  # unlike entry.is_dir(), it knows links that lead to themselves
                (links if entry.is_symlink() else waiting).append(path)
            elif is_image_name(entry.name):
                if reason := _why_not(path):
                    found.skipped.append(f"{printable(path)}: {reason}")
                else:
                    found.files.append(path)
    found.files.sort()
    found.skipped.sort()
    return found


def is_image_name(name: str) -> bool:
    """Whether a name has the suffix of an image, in upper or lower case."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name belongs to a file manager or an archive, or is hidden."""
    return name.startswith(".") or name.lower() in NO_IMAGES


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
    """What to install to read an image of this name; None if nothing is known to be missing."""
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
