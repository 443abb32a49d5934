"""Which files a recipe names: a folder of them, one, a glob or a pattern with braces, here or behind fsspec."""

import glob
import os
import re
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from clip_itm.data.formats.splits import ALIASES
from clip_itm.data.image_names import is_litter
from clip_itm.data.remote import is_remote, remote_files
from clip_itm.data.skipped import shown

BRACES = re.compile(r"\{([^{}]+)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")
MOST = 10_000_000  # names of one pattern


class ListedFile(NamedTuple):
    """A file: `path` is absolute or a URL; `label` is below the common folder; `stamp` changes when the file does."""

    path: str
    label: str
    size: int
    stamp: str


def find_files(root: str, suffixes: tuple[str, ...]) -> list[ListedFile]:
    """The files with these suffixes that `root` names, in the order of their labels.

    Raises ValueError if there is none, and if a name that a pattern with braces gives does not exist.
    """
    found: dict[str, tuple[int, str]] = {}
    absent = []
    names = list(expand_braces(root))
    for name in names:
        own = remote_files(name) if is_remote(name) else _local_files(name)
        own = {path: facts for path, facts in own.items() if path.lower().endswith(suffixes)}
        absent += [] if own else [name]
        found |= own
    if absent and len(names) > 1:
        raise ValueError(f"{root}: {len(absent)} of {len(names)} files are not there: {shown(absent)}")
    if not found:
        kind = suffixes[0]
        raise ValueError(
            f"{root}: no {kind} files there; expected a folder of {kind} files, one of them, a glob such as "
            f"data/*{kind}, or data/{{00000..00012}}{kind}"
        )
    start = len(_common_folder(list(found)))
    return sorted(ListedFile(path, path[start:], *found[path]) for path in found)


def expand_braces(pattern: str) -> Iterator[str]:
    """What a shell makes of `{00000..00012}` and `{a,b}`, in the same order.

    Example:
        >>> list(expand_braces("{train,val}-{08..10}.tar"))[:4]
        ['train-08.tar', 'train-09.tar', 'train-10.tar', 'val-08.tar']
    """
    found = BRACES.search(pattern)
    if found is None:
        yield pattern
        return
    choices: Iterable[str] = found[1].split(",")
    if limits := RANGE.fullmatch(found[1]):
        first, last = int(limits[1]), int(limits[2])
        if not 0 <= last - first < MOST:
            raise ValueError(f"{pattern}: {found[0]} is no ascending range of at most {MOST:,} names")
        choices = (f"{number:0{len(limits[1])}d}" for number in range(first, last + 1))
    for choice in choices:
        yield from expand_braces(pattern[: found.start()] + choice + pattern[found.end() :])


def _local_files(name: str) -> dict[str, tuple[int, str]]:
    """{absolute path: (size, stamp)} of the files that a name or a glob means."""
    path = os.path.abspath(os.path.expanduser(name))
    if os.path.isdir(path):
        paths = [str(file) for file in _files_below(Path(path))]
    elif os.path.exists(path):
        paths = [path]
    else:
        paths = sorted(glob.glob(path, recursive=True))
        paths = [file for one in paths for file in (map(str, _files_below(Path(one))) if os.path.isdir(one) else [one])]
    found = {}
    for file in paths:
        if os.path.isfile(file):
            status = os.stat(file)
            found[file] = status.st_size, str(status.st_mtime_ns)
    return found


def _files_below(folder: Path) -> Iterator[Path]:
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = sorted(name for name in folders if not is_litter(name)) if real not in seen else []
        if real not in seen:
            yield from (Path(place) / name for name in sorted(files) if not is_litter(name))
        seen.add(real)


def _common_folder(paths: list[str]) -> str:
    folders = [path[: path.rindex("/") + 1] for path in paths]
    first, last = min(folders), max(folders)
    same = next((place for place, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))
    return first[: first[:same].rindex("/") + 1]


def splits_of(files: list[ListedFile], patterns: dict[str, str] | None, root: str) -> list[str | None]:
    """The split of each file: by the patterns of `data.splits`, by the names of files or folders, else None.

    Names decide if they name train and val. Raises ValueError if a file has no split and others have one, and if a file
    has two.
    """
    if patterns is None:
        own = [_named_split(file.label) for file in files]
        if not {"train", "val"} <= set(own):
            return [None] * len(files)
        if without := [file.label for file, split in zip(files, own, strict=True) if split is None]:
            raise ValueError(
                f"{root}: the names of files tell train, val and test, but not those of {len(without)} "
                f"({shown(without)}); say which are which with data.splits"
            )
        return own
    found: list[str | None] = [None] * len(files)
    for split, pattern in patterns.items():
        wanted = list(expand_braces(pattern))
        chosen = [row for row, file in enumerate(files) if any(_fits(file, one) for one in wanted)]
        if not chosen:
            labels = shown([file.label for file in files])
            raise ValueError(f"{root}: no file fits data.splits, {split}: {pattern}; there are {labels}")
        for row in chosen:
            if found[row] is not None:
                raise ValueError(f"{root}: data.splits gives {files[row].label} to {found[row]} and to {split}")
            found[row] = split
    return found


def _fits(file: ListedFile, pattern: str) -> bool:
    """Whether a pattern means a file by its label, by its path, or by the folder that it is in."""
    return any(fnmatchcase(name, pattern.rstrip("/") + end) for name in (file.label, file.path) for end in ("", "/*"))


def _named_split(label: str) -> str | None:
    """The split that the first folder of a label names, or the beginning of its file's name: train-000000.tar."""
    folder, _, name = label.rpartition("/")
    first = re.split(r"[-_./]|(?=\d)", name, maxsplit=1)[0].lower()
    return ALIASES.get(folder.partition("/")[0].lower()) or ALIASES.get(first)
