"""From the `data:` section to verified splits: what can be known before a photo is decoded is checked here."""

import logging
import os
from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, concatenate_datasets

from clip_itm.data.builder import CaptionedImages
from clip_itm.data.configuration import DataConfig
from clip_itm.data.rows import SPLIT_NAMES, Split

logger = logging.getLogger(__name__)

SHOWN = 20


class MissingPhotosError(ValueError):
    """Photos of the annotations that are not there, or are files of zero bytes: all of them at once, in `photos`."""

    def __init__(self, photos: list[str], total: int):
        self.photos = photos
        super().__init__(
            f"{len(photos)} of {total} photos are missing or empty:\n  {shown(photos, separator=chr(10) + '  ')}\n"
            "Put them there, correct data.root, or set data.skip_missing: true to go on with the others."
        )


class Absent(NamedTuple):
    """A photo that cannot be read, as its folder alone tells."""

    row: int
    photo: str
    is_empty: bool  # it is there, with zero bytes

    def __str__(self) -> str:
        return self.photo + (" (0 bytes)" if self.is_empty else "")


def load_splits(config: DataConfig, verify: bool = True) -> dict[str, Split]:
    """The splits that the data set has, keyed train, val, test.

    Photos that are not there are an error (`MissingPhotosError`), or are left out and listed in `Split.missing` where
    `skip_missing` is set or the source is known for it (CC120K by TSV, token files without split files). So are, with
    `skip_missing`, empty captions and photos without captions. An empty split and a photo id that occurs twice are
    always errors. `verify=False` leaves out the same and raises nothing: `clip-itm data check` reports it all.
    """
    rows, missing_is_normal = read_rows(config)
    splits = {name: Split(name, rows[name]) for name in SPLIT_NAMES if name in rows}
    if config.source == "regions":
        source = _open_source(config)
        splits = {name: replace(split, regions=source.features(name)) for name, split in splits.items()}
    if config.skip_missing or missing_is_normal:
        splits = {name: leave_out_absent(split) for name, split in splits.items()}
    if config.skip_missing:
        splits = {name: leave_out_empty_captions(split) for name, split in splits.items()}
    if config.max_photos is not None:
        kept = {name: range(min(len(split), config.max_photos)) for name, split in splits.items()}
        splits = {name: split.select(kept[name]) for name, split in splits.items()}
    if verify:
        for note in {note: None for split in splits.values() for note in notes(split)}:
            logger.warning(note)
        demand_photos(splits)
        if problems := split_problems(splits):
            raise ValueError("\n".join(problems))
    return splits


def read_rows(config: DataConfig) -> tuple[dict[str, Dataset], bool]:
    """Rows by split as the annotations give them, and whether this source is known for lists of absent photos."""
    if config.source == "hub":
        from clip_itm.data.hub import load_hub

        return load_hub(config), False
    builder = _open_source(config)
    return builder.load(), builder.missing_is_normal


def _open_source(config: DataConfig) -> CaptionedImages:
    match config.source:
        case "coco":
            from clip_itm.data.coco import CocoImages as Source
        case "flickr":
            from clip_itm.data.flickr import FlickrImages as Source
        case "cc120k":
            from clip_itm.data.cc120k import Cc120kImages as Source
        case "folder":
            from clip_itm.data.folder import FolderImages as Source
        case "regions":
            from clip_itm.data.region_rows import RegionsImages as Source
        case "sample":
            from clip_itm.data.sample import SampleImages as Source
    return Source(config)


def notes(split: Split) -> list[str]:
    """What reading the annotations left to say about this split or its data set."""
    return (split.rows.info.description or "").splitlines()


def find_absent(rows: Dataset) -> list[Absent]:
    """Photos that are missing or have zero bytes, in row order, by one listing of every folder."""
    by_folder: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    absent = []
    start = 0
    for batch in rows.select_columns(["image"]).with_format("arrow").iter(batch_size=1000):
        image = batch["image"].combine_chunks()
        sizes = pc.binary_length(image.field("bytes")).to_pylist()
        for row, (path, size) in enumerate(zip(image.field("path").to_pylist(), sizes, strict=True), start=start):
            if size is None:
                folder, name = os.path.split(path or "")
                by_folder[folder][name].append(row)
            elif size == 0:
                absent.append(Absent(row, path or f"photo stored in row {row}", is_empty=True))
        start += len(image)
    for folder, names in by_folder.items():
        sizes = _file_sizes(folder, names)
        for name in names:
            if not sizes.get(name):
                path = os.path.join(folder, name)
                absent += [Absent(row, path, is_empty=name in sizes) for row in names[name]]
    return sorted(absent)


def _file_sizes(folder: str, names: Collection[str]) -> dict[str, int]:
    """Size in bytes of those files of a folder that are among `names`."""
    try:
        with os.scandir(folder or ".") as entries:
            return {entry.name: entry.stat().st_size for entry in entries if entry.name in names and entry.is_file()}
    except (FileNotFoundError, NotADirectoryError):
        return {}


def demand_photos(splits: dict[str, Split]) -> None:
    absent = [
        f"{name}: {photo}"
        for name, split in splits.items()
        if split.regions is None
        for photo in find_absent(split.rows)
    ]
    if absent:
        raise MissingPhotosError(absent, sum(len(split) for split in splits.values()))


def leave_out_absent(split: Split) -> Split:
    absent = find_absent(split.rows) if split.regions is None else []
    if not absent:
        return split
    count = f"{len(absent)} of {len(split)} photos are missing or empty and left out"
    logger.warning("%s: %s: %s", split.name, count, shown([str(photo) for photo in absent]))
    rows = {photo.row for photo in absent}
    kept = split.rows.select([row for row in range(len(split)) if row not in rows])
    return Split(split.name, kept, tuple(photo.photo for photo in absent))


def leave_out_empty_captions(split: Split) -> Split:
    empty, without = empty_captions(split), photos_without_captions(split)
    if not empty and not without:
        return split

    texts = [name for name in split.rows.column_names if name.startswith("caption")]  # ids and weights go along

    def keep(*columns: list) -> dict:
        kept = [values for values in zip(*columns, strict=True) if values[texts.index("captions")].strip()]
        return {name: [values[place] for values in kept] for place, name in enumerate(texts)}

    kept = split.rows.select_columns(texts).map(keep, input_columns=texts, keep_in_memory=True)
    rows = concatenate_datasets([split.rows.remove_columns(texts), kept], axis=1)  # stored photos are not copied
    regions = split.regions
    if regions is not None:
        written = pc.not_equal(pc.utf8_trim_whitespace(split.pairs.captions), "").to_numpy(zero_copy_only=False)
        regions = regions.select(np.arange(len(split)), np.flatnonzero(written))
    counts = pc.list_value_length(_columns(rows, "captions")["captions"]).to_pylist()
    split = replace(split, rows=rows, regions=regions).select([row for row, count in enumerate(counts) if count])
    note = f"{split.name}: {len(empty)} empty captions and {counts.count(0)} photos without captions are left out"
    logger.warning("%s: %s", note, shown(empty + without))
    split.rows.info.description = "\n".join([*notes(split), note])
    return split


def empty_captions(split: Split) -> list[str]:
    """Ids (mostly file:line) of captions with nothing but white space in them."""
    table = _columns(split.rows, "captions", "caption_ids")
    is_empty = pc.equal(pc.utf8_trim_whitespace(pc.list_flatten(table["captions"])), "")
    return pc.list_flatten(table["caption_ids"]).filter(is_empty).to_pylist()


def photos_without_captions(split: Split) -> list[str]:
    """Ids of photos that have no caption at all."""
    table = _columns(split.rows, "image_id", "captions")
    return table["image_id"].filter(pc.equal(pc.list_value_length(table["captions"]), 0)).to_pylist()


def _columns(rows: Dataset, *names: str) -> pa.Table:
    return rows.select_columns(list(names)).with_format("arrow")[:]


def split_problems(splits: dict[str, Split]) -> list[str]:
    """What training cannot go on with, apart from the photos themselves; one sentence each."""
    problems = []
    owner: dict[str, str] = {}
    if not splits:
        problems.append("the annotations name no photos")
    for name, split in splits.items():
        if len(split) == 0:
            left_out = f"; {len(split.missing)} photos are missing: {shown(split.missing)}" if split.missing else ""
            problems.append(f"split {name} is empty{left_out}")
        advice = "write or remove them, or set data.skip_missing: true"
        if empty := empty_captions(split):
            problems.append(f"split {name}: {len(empty)} empty captions ({shown(empty)}); {advice}")
        if without := photos_without_captions(split):
            problems.append(f"split {name}: {len(without)} photos without captions ({shown(without)}); {advice}")
        ids = Counter(_columns(split.rows, "image_id")["image_id"].to_pylist())
        if twice := [image_id for image_id, count in ids.items() if count > 1]:
            problems.append(
                f"split {name}: {len(twice)} photo ids occur more than once ({shown(twice)}); "
                "all captions of a photo belong together, on neighbouring lines"
            )
        if shared := [image_id for image_id in ids if owner.setdefault(image_id, name) != name]:
            problems.append(
                f"{len(shared)} photos of split {name} are in split {owner[shared[0]]} too ({shown(shared)}); "
                "remove them from one of the two"
            )
    return problems


def shown(names, separator: str = ", ") -> str:
    """The first twenty, and how many more."""
    more = [f"... and {len(names) - SHOWN} more"] if len(names) > SHOWN else []
    return separator.join([*names[:SHOWN], *more])
