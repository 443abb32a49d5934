"""What kind of data a name means, if only a folder, a file or a pattern is given. Nothing here reads a photo."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from clip_itm.data.formats.tables import TABLES
from clip_itm.data.image_names import is_image_name, is_litter

SUFFIXES = {".tar": "webdataset", ".tar.gz": "webdataset", ".tgz": "webdataset", ".parquet": "parquet"}
MOST = 50_000  # names that are looked at


class Recognised(NamedTuple):
    """The keys of a `data` section, and a sentence that says what was seen."""

    section: dict[str, str]
    sentence: str


def recognised(data: str | Path) -> Recognised | None:
    """The source for a folder, for a single data file, and for a glob or a URL of such files; None for anything else.

    A folder is, in this order: a data set that `save_to_disk` wrote; one with a table of captions; photos with texts
    next to them; photos whose table is missing; and if there are none, tars (next to which img2dataset puts Parquet
    files of its own), or Parquet files.
    """
    name, place = str(data), Path(data).expanduser()
    if (place / "dataset_dict.json").is_file() or (place / "state.json").is_file():
        return Recognised({"source": "hub", "path": name}, "a data set written by save_to_disk")
    if place.is_dir():
        source, sentence = _folder(place)
        return Recognised({"source": source, "root": name}, sentence)
    source = next((source for end, source in SUFFIXES.items() if name.lower().endswith(end)), None)
    if "://" in name and source is None:
        source = "webdataset"
    if source is not None and (place.is_file() or "://" in name or set("*?[{") & set(name)):
        return Recognised({"source": source, "root": name}, f"read as data.source {source}")
    return None


def _folder(place: Path) -> tuple[str, str]:
    with os.scandir(place) as entries:
        names = {entry.name.lower() for entry in entries}
    if table := next((name for name in TABLES if name in names), None):
        return "folder", f"photos and the table {table}"
    kinds: dict[str, str] = {}
    photos, texts = set(), set()
    for name in _names_below(place):
        stem, end = os.path.splitext(name)
        if kind := next((kind for suffix, kind in SUFFIXES.items() if name.lower().endswith(suffix)), None):
            kinds.setdefault(kind, name)
        elif is_image_name(name):
            photos.add(stem)
        elif end.lower() in (".txt", ".caption"):
            texts.add(stem)
    if both := photos & texts:
        return "text_files", f"photos with a text beside each ({os.path.basename(min(both))}, ...)"
    for kind, what in (("webdataset", "tars of WebDataset or img2dataset"), ("parquet", "Parquet files")):
        if kind in kinds and not photos:
            return kind, f"{what} ({os.path.basename(kinds[kind])}, ...)"
    return "folder", "photos"


def _names_below(place: Path) -> Iterator[str]:
    seen = 0
    for folder, folders, files in os.walk(place):
        folders[:] = sorted(name for name in folders if not is_litter(name))
        for name in sorted(files):
            if not is_litter(name):
                yield os.path.join(folder, name)
        seen += len(files)
        if seen > MOST:
            return
