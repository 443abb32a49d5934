"""Checksums of what is kept: a flipped bit is found before it is used.

XXH3-128 finds damage at the speed of memory; it is no defence against somebody who means harm.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import xxhash

from clip_itm.files import is_temporary, write_json
from clip_itm.lock import LOCK_FILE

CHECKSUMS = "checksums.json"
EDITABLE = ("README.md",)  # what people may change in a folder without harm
BLOCK = 2**22  # bytes


def checksum_of(path: str | Path) -> str:
    """XXH3-128 of a file's content, in hexadecimal."""
    digest = xxhash.xxh3_128()
    with Path(path).open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def write_checksums(folder: str | Path, also: dict | None = None) -> None:
    """`checksums.json` of all files in `folder` and below: {"files": {name: {bytes, xxh3}}}, and the entries `also`.

    Folders below that have a `checksums.json` of their own are left to it.
    """
    folder = Path(folder)
    files = {
        name: {"bytes": (folder / name).stat().st_size, "xxh3": checksum_of(folder / name)} for name in _files(folder)
    }
    write_json(folder / CHECKSUMS, {**(also or {}), "files": files})


def read_checksums(folder: str | Path) -> dict | None:
    """What `checksums.json` of a folder holds, None where there is none (of an earlier clip_itm, or of others)."""
    path = Path(folder) / CHECKSUMS
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        files = content["files"]
        if not all(isinstance(entry["bytes"], int) and isinstance(entry["xxh3"], str) for entry in files.values()):
            raise ValueError("unexpected entries")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); restore the folder from a copy, or make it again") from None
    return content


def damages(folder: str | Path, names: Iterable[str] | None = None) -> list[str]:
    """A sentence for each file that is no longer what `checksums.json` says; `names` limits them. [] without one."""
    folder, content = Path(folder), read_checksums(folder)
    if content is None:
        return []
    found = []
    for name, entry in content["files"].items():
        path = folder / name
        if names is not None and name not in names:
            continue
        if not path.is_file():
            found.append(f"{path} is missing")
        elif (size := path.stat().st_size) != entry["bytes"]:
            found.append(f"{path} has {size:,} bytes, not {entry['bytes']:,} as when it was written")
        elif checksum_of(path) != entry["xxh3"]:
            found.append(f"{path} is not what was written: its checksum has changed")
    return found


def check_files(folder: str | Path, names: Iterable[str] | None = None) -> None:
    """Raise ValueError where `damages` finds any."""
    if found := damages(folder, None if names is None else set(names)):
        raise ValueError(
            "; ".join(found) + f". Restore the folder from a copy or make it again; if you changed it on purpose, "
            f"delete {Path(folder) / CHECKSUMS}"
        )


def _files(folder: Path) -> list[str]:
    names = []
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not (path / CHECKSUMS).exists():
            names += [f"{path.name}/{name}" for name in _files(path)]
        elif path.is_file() and path.name not in (CHECKSUMS, LOCK_FILE, *EDITABLE) and not is_temporary(path):
            names.append(path.name)
    return names
