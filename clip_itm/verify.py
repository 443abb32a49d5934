"""Compares runs, models, caches, indexes and banks with the checksums that they carry."""

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from clip_itm.checksums import CHECKSUMS, damage_of, read_checksums
from clip_itm.data.arrays import checked_array
from clip_itm.files import is_temporary, read_arrays
from clip_itm.lock import LOCK_FILE
from clip_itm.seal import image_in, is_whole

BEGINS = {".npz": b"PK", ".npy": b"\x93NUMPY"}
FEATURES = re.compile(r"(photos|captions)-[0-9a-f]{32}(-tokens)?\.npy")
SEGMENT = re.compile(r"(?:vectors|items)-(\d{4,}|[0-9a-f]{16})\.(?:safetensors|parquet)")  # of an index
RESIZED = re.compile(r"(.*/[1-9]\d*)/[0-9a-f]{2}/[0-9a-f]{30}", re.DOTALL)  # a resized image, in the folder of its size


@dataclass
class Part:
    """A folder or file: how much was compared, files that carry no checksum, and a sentence for each damage."""

    where: Path
    files: int = 0
    bytes: int = 0
    without: list[Path] = field(default_factory=list)
    damages: list[str] = field(default_factory=list)


def verify(where: Path, progress: Callable[[int], object] = lambda size: None) -> list[Part]:
    """One part for each folder in `where` that holds files; `progress` is called with the size of each file checked.

    Raises ValueError if nothing there belongs to clip_itm, or a single file has no checksum.
    """
    if not where.exists():
        raise ValueError(f"{where}: there is no such file or folder")
    if where.is_file():
        where, parts = where.absolute(), {}
        part = parts[where] = Part(where)
        if (damages := _damages_in_index(where)) is not None:
            part.files, part.bytes, part.damages = 1, _size(where), damages
        else:
            _compare(where, _named([where.parent], parts).get(where), part)
        if part.without:
            raise ValueError(f"{where} carries no checksum: it is of an earlier clip_itm, or of another program")
        return [part]
    folders, parts = _folders(where), {}
    named = _named(folders, parts)
    ours = bool(named or parts)
    for folder in folders:
        indexed = _is_index(folder)
        for path in (found := files_in(folder)):
            resized = RESIZED.fullmatch(path.absolute().as_posix())
            part = parts.setdefault(heading := folder.parent if resized else folder, Part(heading))
            if indexed:
                part.files, part.bytes = part.files + 1, part.bytes + _size(path)
            else:
                _compare(path, named.pop(path, None), part)
            progress(_size(path))
        if indexed:
            from clip_itm.retrieval.storage import index_damages

            parts[folder].damages += index_damages(folder)
        ours = ours or indexed or any(map(_is_ours, found))
    for path, entry in named.items():
        _compare(path, entry, parts.setdefault(path.parent, Part(path.parent)))
    if not ours and not any(part.files for part in parts.values()):
        raise ValueError(f"{where} holds no run, model, cache, index or bank of clip_itm")
    return list(parts.values())


def files_in(folder: Path) -> list[Path]:
    """The files of a folder that may have a checksum."""
    found = sorted(path for path in folder.iterdir() if path.is_file() and not is_temporary(path))
    return [path for path in found if path.name not in (CHECKSUMS, LOCK_FILE) and path.suffix != ".lock"]


def total_size(where: Path) -> int:
    """Bytes of all files below a folder that may have a checksum."""
    return sum(_size(path) for folder in _folders(where) for path in files_in(folder))


def _folders(where: Path) -> list[Path]:
    found = []
    for folder, below, _ in os.walk(where):
        below[:] = sorted(name for name in below if not is_temporary(Path(name)))
        found.append(Path(folder))
    return found


def _named(folders: list[Path], parts: dict[Path, Part]) -> dict[Path, dict]:
    """The entry of each file in the folders' checksums.json; damaged ones go into `parts`."""
    named = {}
    for folder in folders:
        try:
            content = read_checksums(folder) or {"files": {}}
        except ValueError as error:
            parts[folder] = Part(folder, damages=[str(error)])
        else:
            named |= {folder / name: entry for name, entry in content["files"].items()}
    return named


def _compare(path: Path, entry: dict | None, part: Part) -> None:
    """Add what one file shows to `part`; `entry` is its entry in the folder's checksums.json."""
    damage = damage_of(path, entry) if entry else _own_damage(path)
    if damage is False:
        part.without.append(path)
    else:
        part.files, part.bytes = part.files + 1, part.bytes + _size(path)
        part.damages += [damage] if damage else []


def _own_damage(path: Path) -> str | bool | None:
    """For a file that may carry its own checksum: a sentence if it is damaged, None if not; False if it has none."""
    try:
        if path.suffix in BEGINS and _is_foreign(path):
            return False
        if path.suffix == ".npz":
            return None if read_arrays(path)[1] else False
        if path.suffix == ".npy":
            return None if checked_array(path)[1] else False
    except ValueError as error:
        return str(error) if str(path) in str(error) else f"{path} cannot be read ({error})"
    if RESIZED.fullmatch(path.absolute().as_posix()):
        return f"{path} is not what was written" if image_in(path.read_bytes()) is None else None
    return False


def _is_foreign(path: Path) -> bool:
    """Whether somebody else's file has the suffix of arrays: it has no seal, and does not begin like an array."""
    with path.open("rb") as file:
        begin = file.read(len(BEGINS[path.suffix]))
    return bool(begin) and not BEGINS[path.suffix].startswith(begin) and is_whole(path) is None


def _is_index(folder: Path) -> bool:
    """Whether index.json says so, or is damaged or lost and the files that it named are there."""
    path = folder / "index.json"
    try:
        if "clip_itm search index" in path.read_text(encoding="utf-8", errors="replace"):
            return True
    except OSError:
        pass
    vectors, items = (
        {match[1] for file in folder.glob(f"{name}-*") if (match := SEGMENT.fullmatch(file.name))}
        for name in ("vectors", "items")
    )
    if not vectors & items:
        return False
    return path.exists() or not (folder / ".clip_itm.pending").exists()  # else of a first save that was killed


def _damages_in_index(path: Path) -> list[str] | None:
    """What is wrong with one file of an index; None if it is not one."""
    if not _is_index(path.parent):
        return None
    from clip_itm.retrieval.storage import index_damages, index_files

    try:
        if path not in index_files(path.parent):
            return None
    except (ValueError, KeyError, TypeError, AttributeError):  # index.json itself is damaged
        return index_damages(path.parent)
    return [damage for damage in index_damages(path.parent) if damage.startswith(str(path))]


def _is_ours(path: Path) -> bool:
    """Whether a file without a checksum shows that it belongs to a run, model or cache of an earlier clip_itm."""
    if path.name == "config.json":
        try:
            return json.loads(path.read_text(encoding="utf-8"))["model_type"] == "clip_itm"
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return False
    return path.name == "provenance.json" or FEATURES.fullmatch(path.name) is not None


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
