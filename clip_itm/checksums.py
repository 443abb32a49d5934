"""Checksums of the files in a folder: a flipped bit is found before it is used.

Files on their own carry their own checksum (`seal.py`).
"""

import json
import time
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

from clip_itm.digests import checksum_of
from clip_itm.files import is_temporary, write_json
from clip_itm.lock import LOCK_FILE

CHECKSUMS = "checksums.json"
EDITABLE = ("README.md",)  # what people may change in a folder without harm


def write_checksums(folder: str | Path, also: dict | None = None) -> None:
    """Write `checksums.json` of all files in `folder` and below: {"files": {name: {bytes, xxh3}}}, and `also`.

    Folders below that have a `checksums.json` of their own are not covered.
    """
    folder = Path(folder)
    write_json(folder / CHECKSUMS, {**(also or {}), "files": _entries(folder, _files(folder))})


def add_checksums(folder: str | Path, names: Iterable[str]) -> None:
    """Write or renew the entries of some files in a folder's `checksums.json`; the others stay as they are."""
    folder = Path(folder)
    content = read_checksums(folder) or {"files": {}}
    write_json(folder / CHECKSUMS, content | {"files": content["files"] | _entries(folder, names)})


@contextmanager
def recording(folder: str | Path) -> Iterator[None]:
    """Record checksums of the files that the block writes into `folder` (not below), but not of a user's own files."""
    folder, started = Path(folder), time.time_ns()
    before = _stamps(folder)
    yield
    # as git does: a file that was just written may change again without a newer time
    written = [name for name, stamp in _stamps(folder).items() if before.get(name) != stamp or stamp[0] > started - 1e9]
    add_checksums(folder, written)


def read_checksums(folder: str | Path) -> dict | None:
    """The content of a folder's `checksums.json`; None if there is none (from an earlier clip_itm, or from others).

    Raises ValueError if it is damaged.
    """
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


def damages(folder: str | Path, names: Collection[str] | None = None) -> list[str]:
    """A sentence for each file that no longer matches `checksums.json`; [] if there is none.

    `names`, which may be patterns such as "*.json", limits the files.
    """
    folder, content = Path(folder), read_checksums(folder)
    wanted = {} if content is None else content["files"]
    if names is not None:
        wanted = {name: wanted[name] for name in wanted if any(fnmatchcase(name, pattern) for pattern in names)}
    return [found for name, entry in wanted.items() if (found := damage_of(folder / name, entry))]


def damage_of(path: Path, entry: dict) -> str | None:
    """How a file differs from its entry in `checksums.json`, in a sentence; None if it does not."""
    if not path.is_file():
        return f"{path} is missing"
    if (size := path.stat().st_size) != entry["bytes"]:
        return f"{path} has {size:,} bytes, not {entry['bytes']:,} as when it was written"
    if checksum_of(path) != entry["xxh3"]:
        return f"{path} is not what was written: its checksum has changed"
    return None


def check_files(folder: str | Path, names: Collection[str] | None = None) -> None:
    """Raise ValueError if `damages` finds any."""
    if found := damages(folder, names):
        raise ValueError(
            "; ".join(found) + f". Restore the folder from a copy or make it again; if you changed it on purpose, "
            f"delete {Path(folder) / CHECKSUMS}"
        )


@contextmanager
def checked_meanwhile(folder: str | Path | None, names: Collection[str]) -> Iterator[None]:
    """Run `check_files` (if there is a folder) in a thread while the block runs.

    Damage that it finds is raised instead of whatever error it causes in the block.
    """
    if folder is None:
        yield
        return
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(check_files, folder, names)
        try:
            yield
        except Exception:
            found.result()
            raise
        found.result()


def _entries(folder: Path, names: Iterable[str]) -> dict[str, dict]:
    return {name: {"bytes": (folder / name).stat().st_size, "xxh3": checksum_of(folder / name)} for name in names}


def _is_kept(path: Path) -> bool:
    return path.is_file() and path.name not in (CHECKSUMS, LOCK_FILE, *EDITABLE) and not is_temporary(path)


def _files(folder: Path) -> list[str]:
    names = []
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not (path / CHECKSUMS).exists():
            names += [f"{path.name}/{name}" for name in _files(path)]
        elif _is_kept(path):
            names.append(path.name)
    return names


def _stamps(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Time of change, size and number of every file in a folder."""
    if not folder.is_dir():
        return {}
    found = {path.name: path.stat() for path in sorted(folder.iterdir()) if _is_kept(path)}
    return {name: (status.st_mtime_ns, status.st_size, status.st_ino) for name, status in found.items()}
