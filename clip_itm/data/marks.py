"""Marks: what people said about pairs, a line each, in a file that only grows.

    {"pair": "3f..", "mark": "fixed", "text": "a red mug", "image_id": "7.jpg", "caption": "IMG_2031", "author": "ana",
     "time": "2026-11-30T18:55:00+00:00", "sampled": true, "weight": 1240}

The last mark of a pair counts, whoever made it; "undone" takes back the last one of its author. A line is on disk
before it counts as made, so that a reload, a second browser or a killed server loses nothing.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

import xxhash

from clip_itm.data.formats.label_studio import mark_lines
from clip_itm.reading import reading

Kind = Literal["right", "wrong", "fixed", "skipped", "undone"]
KINDS = get_args(Kind)


def pair_hash(image_id: str, caption: str) -> str:
    """XXH3-128, in hexadecimal, of a photo's id and a caption: the same in another order, or in a part of the data.

    Example:
        >>> pair_hash("7.jpg", "a red mug")
        'c6d356acae4b5b6fc21ba8af9f71657f'
    """
    return xxhash.xxh3_128(f"{len(image_id)} {image_id} {caption.strip()}".encode()).hexdigest()


def pair_hashes(image_ids: Iterable[str], captions: Iterable[str]) -> list[str]:
    """`pair_hash` of every pair."""
    return [pair_hash(image_id, caption) for image_id, caption in zip(image_ids, captions, strict=True)]


@dataclass(frozen=True)
class Mark:
    """What one person said about one pair.

    `pair`: its `pair_hash`. `mark`: "right", "wrong", "fixed" (wrong, and `text` is right), "skipped" (looked at,
    undecided), or "undone". `image_id`, `caption`: of the pair, for people. `author`, `time` (ISO 8601, UTC).
    `sampled`: the pair came from a random sample, not because it was suspicious, so that it tells how many are wrong;
    `weight`: how many pairs it represents there (`Draw.weight`; only ratios count, and None is as good while the same
    scores judge the data).
    """

    pair: str
    mark: Kind
    image_id: str = ""
    caption: str = ""
    text: str | None = None
    author: str = ""
    time: str = ""
    sampled: bool = False
    weight: float | None = None

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Mark":
        """A mark from JSON, without unknown keys. Raises ValueError for anything that is not a mark."""
        known = {name.name: content[name.name] for name in fields(cls) if content.get(name.name) is not None}
        if missing := [name for name in ("pair", "mark") if name not in known]:
            raise ValueError(f"it has no {missing[0]!r}")
        if known["mark"] not in KINDS:
            raise ValueError(f"mark is {known['mark']!r}; expected {', '.join(KINDS)}")
        weight = known.pop("weight", None)
        if weight is not None and (type(weight) not in (int, float) or not 0 < weight < float("inf")):
            raise ValueError(f"weight is {weight!r}; expected a number above 0")
        for name, value in known.items():
            expected = bool if name == "sampled" else str
            if not isinstance(value, expected):
                raise ValueError(f"{name} is {value!r}; expected {'true or false' if expected is bool else 'a text'}")
        if known["mark"] == "fixed" and not known.get("text", "").strip():
            raise ValueError("it is fixed, and has no text")
        return cls(**known, weight=weight)


def now() -> str:
    """The current time, as a mark has it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def append_marks(path: str | Path, marks: Iterable[Mark]) -> None:
    """Append lines to a file, which is made if it does not exist; they are on disk when this returns.

    Whole lines go in one write, so that two programs do not mix theirs. After a line that was cut off (a program was
    killed, or the disk was full) a new one begins.
    """
    lines = "".join(
        json.dumps({key: value for key, value in asdict(mark).items() if value is not None}, ensure_ascii=False) + "\n"
        for mark in marks
    ).encode()
    path = Path(path)
    is_new = not path.exists()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            lines = b"\n" + lines
        while lines:
            lines = lines[os.write(descriptor, lines) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if is_new:
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Write a folder to disk, so that the name of a new file is there, too."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_marks(path: str | Path) -> list[Mark]:
    """All lines, oldest first. A line that was cut off is left out: its mark was never made.

    A JSON export of Label Studio is also accepted, if its tasks are those of an audit. Raises ValueError, naming the
    line, for a line that is not a mark.
    """
    with reading(path, "a file of marks (JSONL)"):
        content = Path(path).read_bytes()
        text = content.decode("utf-8-sig", errors="replace")
        return _exported(path, text) if text.lstrip().startswith("[") else marks_of_lines(content, path)


def marks_of_lines(lines: bytes, path: str | Path, first: int = 1) -> list[Mark]:
    """`read_marks` for a part of the file `path` whose first line has the number `first`."""
    found = []
    for number, line in enumerate(lines.decode("utf-8-sig", errors="replace").split("\n"), first):
        if not line.strip():
            continue
        try:
            found.append(Mark.from_json(json.loads(line)))
        except json.JSONDecodeError:
            if not line.startswith("{"):
                raise ValueError(f"{path}, line {number}: expected a mark in JSON, got {line[:40]!r}") from None
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    return found


def _exported(path: str | Path, content: str) -> list[Mark]:
    try:
        return [Mark.from_json(line) for line in mark_lines(json.loads(content))]
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: expected marks, or the JSON export of Label Studio; {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def marks_of_pairs(marks: Iterable[Mark]) -> dict[str, Mark]:
    """The mark that counts for each pair, by its hash; a pair whose marks were all undone is not there.

    It is sampled if any mark of the pair is: a second look does not take a pair out of the sample.

    Example:
        >>> first, second = Mark("a", "wrong", author="ana"), Mark("a", "undone", author="ana")
        >>> marks_of_pairs([first]) == {"a": first}, marks_of_pairs([first, second])
        (True, {})
    """
    stacks: dict[str, list[Mark]] = {}
    for mark in marks:
        stack = stacks.setdefault(mark.pair, [])
        if mark.mark != "undone":
            stack.append(mark)
        elif own := [place for place, other in enumerate(stack) if other.author == mark.author]:
            del stack[own[-1]]
    found = {}
    for pair, stack in stacks.items():
        if stack:
            drawn = [mark for mark in stack if mark.sampled]
            found[pair] = replace(stack[-1], sampled=True, weight=drawn[-1].weight) if drawn else stack[-1]
    return found
