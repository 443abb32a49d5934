"""What is left out of a split: images that are missing or cannot be read, and captions that are empty."""

import logging
import os
import stat
from collections import defaultdict
from collections.abc import Collection
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, concatenate_datasets

from clip_itm.data.image_check import ImageChecker, find_unreadable, image_name
from clip_itm.data.rows import Skipped, Split
from clip_itm.data.tar_members import MEMBER, tar_member
from clip_itm.distributed import process_index
from clip_itm.visible import counted

logger = logging.getLogger(__name__)

SHOWN = 20


class Absent(NamedTuple):
    """A row without an image, according to the listing of its folder."""

    row: int
    name: str
    reason: str = ""  # what is there instead; "" if nothing is

    def __str__(self) -> str:
        return self.name + (f" ({self.reason})" if self.reason else "")


def find_absent(rows: Dataset) -> list[Absent]:
    """Rows whose image is null, missing, of zero bytes or not a file, in row order; lists every folder once.

    Those in tars count as present: their tars were checked when the rows were read.
    """
    by_folder: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    absent = []
    start = 0
    for batch in rows.select_columns(["image", "image_id"]).with_format("arrow").iter(batch_size=1000):
        image = batch["image"].combine_chunks()
        fields = dict(zip((field.name for field in image.type), image.flatten(), strict=True))  # null in a null image
        sizes, paths = pc.binary_length(fields["bytes"]).to_pylist(), fields["path"].to_pylist()
        ids = batch["image_id"].to_pylist()
        if pc.all(pc.match_substring_regex(fields["path"], MEMBER), skip_nulls=False).as_py():
            start += len(image)
            continue
        for row, (path, size, image_id) in enumerate(zip(paths, sizes, ids, strict=True), start=start):
            if size == 0:
                absent.append(Absent(row, path or f"photo {image_id}", "0 bytes"))
            elif size is None and not path:
                absent.append(Absent(row, f"photo {image_id}", "null"))
            elif size is None and tar_member(path) is None:
                folder, name = os.path.split(path)
                by_folder[folder][name].append(row)
        start += len(image)
    for folder, names in by_folder.items():
        found = _states(folder, names)
        for name in names:
            if (reason := found.get(name, "")) is not None:
                absent += [Absent(row, os.path.join(folder, name), reason) for row in names[name]]
    return sorted(absent)


def _states(folder: str, names: Collection[str]) -> dict[str, str | None]:
    """What is wrong with the files of a folder that are among `names`; None for a sound file."""
    try:
        with os.scandir(folder or ".") as entries:
            return {entry.name: _state(entry) for entry in entries if entry.name in names}
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a name that no file can have
        return {}
    except OSError as error:
        return dict.fromkeys(names, f"its folder cannot be read: {error.strerror}")


def _state(entry: os.DirEntry) -> str | None:
    try:
        status = entry.stat()
    except OSError:
        return "a link to nowhere"
    if stat.S_ISDIR(status.st_mode):
        return "a folder"
    if not stat.S_ISREG(status.st_mode):
        return "no regular file"
    return None if status.st_size else "0 bytes"


def leave_out_absent(split: Split, every: bool = True) -> Split:
    """The split without rows that have no image; `every=False`: only without those that have something else instead."""
    absent = find_absent(split.rows) if split.regions is None else []
    kind = "missing" if every else "broken"
    skipped = {
        found.row: Skipped(found.name, kind, found.reason or "not there") for found in absent if every or found.reason
    }
    return _without(split, skipped, "photos are missing or empty and left out")


def leave_out_broken(split: Split, checker: ImageChecker, limit: int | None = None) -> Split:
    """The split without images that cannot be read; with a `limit`, stops after that many readable ones."""
    absent = {found.row for found in find_absent(split.rows)}
    present = [row for row in range(len(split)) if row not in absent]
    wanted = len(present) if limit is None else limit
    broken: dict[int, Skipped] = {}
    end = 0
    while end < len(present) and end - len(broken) < wanted:
        start, end = end, min(len(present), wanted + len(broken))
        rows = split.rows.select(present[start:end])
        for row, sentence in find_unreadable(rows, checker, progress=process_index() == 0).items():
            name = image_name(rows[row])
            reason = sentence.removeprefix(f"{name}: ").partition("; ")[0]  # without advice
            broken[present[start + row]] = Skipped(name, "broken", reason)
    return _without(split, broken, "photos cannot be read and are left out")


def _without(split: Split, skipped: dict[int, Skipped], what: str) -> Split:
    if not skipped:
        return split
    named = shown([f"{item} ({reason})" for item, _, reason in skipped.values()])
    logger.warning("%s: %d of %d %s: %s", split.name, len(skipped), len(split), what, named)
    kept = split.rows.select([row for row in range(len(split)) if row not in skipped])
    return replace(split, rows=kept, skipped=(*split.skipped, *skipped.values()))


def leave_out_empty_captions(split: Split) -> Split:
    """The split without empty captions and without images that have none left, all listed in `skipped`."""
    empty, without = empty_captions(split), images_without_captions(split)
    if not empty and not without:
        return split

    texts = [name for name in split.rows.column_names if name.startswith("caption")]  # including ids and weights

    def keep(*columns: list) -> dict:
        kept = [values for values in zip(*columns, strict=True) if values[texts.index("captions")].strip()]
        return {name: [values[index] for values in kept] for index, name in enumerate(texts)}

    kept = split.rows.select_columns(texts).map(keep, input_columns=texts, keep_in_memory=True)
    rows = concatenate_datasets([split.rows.remove_columns(texts), kept], axis=1)  # stored images are not copied
    regions = split.regions
    if regions is not None:
        written = pc.not_equal(pc.utf8_trim_whitespace(split.pairs.captions), "").to_numpy(zero_copy_only=False)
        regions = regions.select(np.arange(len(split)), np.flatnonzero(written))
    counts = pc.list_value_length(columns_of(rows, "captions")["captions"]).to_pylist()
    split = replace(split, rows=rows, regions=regions).select([row for row, count in enumerate(counts) if count])
    note = (
        f"{split.name}: {counted(len(empty), 'empty caption')} and "
        f"{counted(counts.count(0), 'photo without captions', 'photos without captions')} are left out"
    )
    logger.warning("%s: %s", note, shown(empty + without))
    skipped = [Skipped(caption, "caption", "empty caption") for caption in empty]
    skipped += [Skipped(name, "caption", "photo without a caption") for name in without]
    split = replace(split, skipped=(*split.skipped, *skipped))
    split.rows.info.description = "\n".join([*notes(split), note])
    return split


def empty_captions(split: Split) -> list[str]:
    """Ids (mostly file:line) of captions that are only white space."""
    table = columns_of(split.rows, "captions", "caption_ids")
    is_empty = pc.equal(pc.utf8_trim_whitespace(pc.list_flatten(table["captions"])), "")
    return pc.list_flatten(table["caption_ids"]).filter(is_empty).to_pylist()


def images_without_captions(split: Split) -> list[str]:
    """Ids of images that have no caption at all."""
    table = columns_of(split.rows, "image_id", "captions")
    return table["image_id"].filter(pc.equal(pc.list_value_length(table["captions"]), 0)).to_pylist()


def columns_of(rows: Dataset, *names: str) -> pa.Table:
    """Some columns as an Arrow table, without the images, which would be copied."""
    return rows.select_columns(list(names)).with_format("arrow")[:]


def notes(split: Split) -> list[str]:
    """Remarks of the reader of the annotations on this split or its data set."""
    return (split.rows.info.description or "").splitlines()


def shown(names, separator: str = ", ") -> str:
    """The first twenty names, and how many more there are."""
    more = [f"... and {len(names) - SHOWN} more"] if len(names) > SHOWN else []
    return separator.join([*names[:SHOWN], *more])
