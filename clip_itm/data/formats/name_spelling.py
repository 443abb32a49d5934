"""Names of images in tables, which other systems write differently: Unicode forms, backslashes, URLs, drive letters."""

import os
import re
import unicodedata
from contextlib import suppress

from datasets import Dataset, Features, concatenate_datasets

from clip_itm.data.formats.annotation_files import BrokenRow, check_text, refuse_url
from clip_itm.data.rows import ROW_FEATURES

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://|data:image/")
WINDOWS_PATH = re.compile(r"[A-Za-z]:[\\/]|\\\\")


def canonical(name: str) -> str:
    """The one spelling of an image's name: composed characters (NFC), slashes."""
    return name if name.isascii() and "\\" not in name else unicodedata.normalize("NFC", name.replace("\\", "/"))


def check_name(name: object, where: str) -> str:
    """The name of an image in a cell, without white space around it.

    Raises BrokenRow if there is none, and ValueError for a URL and for a path of a Windows machine; the messages begin
    with `where`.
    """
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        found = "" if name in (None, "") else f" (found {name!r:.80})"
        raise BrokenRow(f"{where} names no photo{found}")
    name = check_text(name.strip(), where)
    if URL.match(name):
        refuse_url(name, where)
    if os.name != "nt" and WINDOWS_PATH.match(name):
        raise ValueError(
            f"{where}: {name!r} is a path of a Windows machine; write paths below the photo folder, such as "
            f"{name.replace(chr(92), '/').rsplit('/', 1)[-1]}"
        )
    return name


def are_two_images(path: str, other: str) -> bool:
    """Whether two spellings of one name are two different files."""
    return os.path.exists(path) and os.path.exists(other) and not os.path.samefile(path, other)


def found_on_disk(rows: Dataset) -> Dataset:
    """The rows with the names that their images have on disk, if a table spells them differently.

    Only names that have several spellings are checked, and only if all images are files. Raises ValueError if several
    files fit.
    """
    paths: list[str] = []
    for batch in rows.select_columns(["image"]).with_format("arrow").iter(batch_size=1000):
        image = batch["image"].combine_chunks()
        if image.field("bytes").null_count < len(image):
            return rows
        paths += image.field("path").to_pylist()
    listings: dict[str, dict[str, list[str]]] = {}
    spelled = [
        path if path is None or (path.isascii() and "\\" not in path) else _spelled_as_on_disk(path, listings)
        for path in paths
    ]
    if spelled == paths:
        return rows
    images = {"image": [{"path": path, "bytes": None} for path in spelled]}
    column = Dataset.from_dict(images, features=Features({"image": ROW_FEATURES["image"]}))
    renamed = concatenate_datasets([column, rows.remove_columns("image")], axis=1)
    renamed.info.description = rows.info.description
    return renamed


def _spelled_as_on_disk(path: str, listings: dict[str, dict[str, list[str]]]) -> str:
    if os.path.exists(path):
        return path
    wanted = os.path.normpath(canonical(path))
    place = os.sep if wanted.startswith("/") else ""
    for part in wanted.split("/"):
        if not os.path.exists(step := os.path.join(place, part)):
            if place not in listings:
                listings[place] = _by_composed_form(place or ".")
            fitting = listings[place].get(part, [])
            if len(fitting) > 1:
                raise ValueError(f"{path}: {len(fitting)} files have this name in other Unicode forms: {fitting}")
            if not fitting:
                return wanted
            step = os.path.join(place, fitting[0])
        place = step
    return place


def _by_composed_form(folder: str) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    with suppress(OSError):
        for name in os.listdir(folder):
            names.setdefault(unicodedata.normalize("NFC", name), []).append(name)
    return names
