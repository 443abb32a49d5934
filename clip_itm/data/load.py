"""The single entry from the `data:` section to splits, and the checks on them before anything trains.

A source is a file in `data/sources/` with `load(section) -> dict[str, Split]`, its section in `data/configuration.py`,
and a line in `SOURCES`; docs/add_a_source.md adds one. Missing, broken and empty items are handled here, for all
sources.
"""

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetDict

from clip_itm.data.configuration import DataConfig, HubData
from clip_itm.data.formats.grouped import repeated, string_hashes
from clip_itm.data.image_cache import ImageCache
from clip_itm.data.image_check import ImageChecker, ReadImages, find_unreadable
from clip_itm.data.rows import SPLIT_NAMES, Split
from clip_itm.data.skipped import (
    columns_of,
    empty_captions,
    find_absent,
    images_without_captions,
    leave_out_absent,
    leave_out_broken,
    leave_out_empty_captions,
    notes,
    shown,
)
from clip_itm.data.sources import cc120k, coco, flickr, folder, hub, parquet, regions, sample, text_files, webdataset
from clip_itm.distributed import process_index
from clip_itm.visible import counted

logger = logging.getLogger(__name__)

# data.source: the function that gives its splits, keyed train, val, test
SOURCES: dict[str, Callable[[Any], dict[str, Split]]] = {
    "coco": coco.load,
    "flickr": flickr.load,
    "cc120k": cc120k.load,
    "folder": folder.load,
    "text_files": text_files.load,
    "hub": hub.load,
    "parquet": parquet.load,
    "webdataset": webdataset.load,
    "regions": regions.load,
    "sample": sample.load,
}


class MissingImagesError(ValueError):
    """Images of the annotations that are missing, or are files of zero bytes: all of them at once, in `images`.

    Others that cannot be read are reported along with them, a sentence each in `broken`.
    """

    def __init__(self, images: list[str], total: int, broken: list[str]):
        self.images, self.broken = images, broken
        super().__init__(
            f"{len(images)} of {total} photos are missing or empty:\n  {shown(images, separator=chr(10) + '  ')}\n"
            "Put them there, correct data.root, or set data.skip_missing: true to go on with the others."
            + (f"\n{BrokenImagesError(broken, total)}" if broken else "")
        )


class BrokenImagesError(ValueError):
    """Images that exist but cannot be read: all of them at once, a sentence each in `images`."""

    def __init__(self, images: list[str], total: int):
        self.images = images
        super().__init__(
            f"{len(images)} of {total} photos cannot be read:\n  {shown(images, separator=chr(10) + '  ')}\n"
            "Put good copies there, or set data.skip_broken: true to go on with the others "
            "(`clip-itm data check RECIPE --json FILE` lists all)."
        )


def load_splits(
    config: DataConfig, verify: bool = True, given: Dataset | DatasetDict | None = None
) -> dict[str, Split]:
    """The splits that the data set has, keyed train, val, test. `given`: the data set of `hub`, if it is in memory.

    Missing images are an error (`MissingImagesError`), or are left out and listed in `Split.skipped` if `skip_missing`
    is set or they are usual for the source (CC120K as TSV, token files without split files). `skip_broken` leaves out
    images that cannot be read, which otherwise are an error too (`BrokenImagesError`): each is decoded once, now or in
    an earlier call. Either option leaves out empty captions and images without captions. An empty split and an image id
    that occurs twice are always errors. All these errors are ValueErrors. `verify=False` leaves out the same items but
    does not check the rest: `clip-itm data check` reports it all.

    Example:
        >>> import tempfile
        >>> from clip_itm.data.configuration import SampleData
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     splits = load_splits(SampleData(train_images=4, val_images=2, test_images=2, cache_dir=folder))
        ...     {name: (len(split), len(split.pairs)) for name, split in splits.items()}
        {'train': (4, 20), 'val': (2, 10), 'test': (2, 10)}
    """
    found = SOURCES[config.source](config) if given is None else hub.load(config, given)
    splits = {name: _without_absent(found[name], config) for name in SPLIT_NAMES if name in found}
    if config.skip_missing or config.skip_broken:
        splits = {name: leave_out_empty_captions(split) for name, split in splits.items()}
    if config.skip_broken and config.reads_images:
        if verify:  # what names and captions alone reveal comes before minutes of decoding
            _require_sound(_first_images(splits, config), None)
        checker = image_checker(config)
        splits = {name: leave_out_broken(split, checker, config.max_images) for name, split in splits.items()}
    splits = _first_images(splits, config)
    if verify:
        for note in {note: None for split in splits.values() for note in notes(split)}:
            logger.warning(note)
        _require_sound(splits, image_checker(config) if config.reads_images and not config.skip_broken else None)
    return splits


def load_given(config: HubData, given: Dataset, name: str = "given") -> Split:
    """A data set in memory as one split, whose images are all found readable."""
    split = _without_absent(hub.load_one(config, given, name), config)
    _require_sound({name: split}, None)
    require_readable({name: split}, image_checker(config))
    return split


def _without_absent(split: Split, config: DataConfig) -> Split:
    every = config.skip_missing or split.missing_is_normal
    return leave_out_absent(split, every) if every or config.skip_broken else split


def _first_images(splits: dict[str, Split], config: DataConfig) -> dict[str, Split]:
    if config.max_images is None:
        return splits
    return {name: split.select(range(min(len(split), config.max_images))) for name, split in splits.items()}


def _require_sound(splits: dict[str, Split], checker: ImageChecker | None) -> None:
    require_images(splits, checker)
    if problems := split_problems(splits):
        raise ValueError("\n".join(problems))


def image_checker(config: DataConfig) -> ImageChecker:
    """Decodes the images of a data set: the cache of resized ones if there is one (it decodes them anyway)."""
    if config.cache_images is not None:
        return ImageCache(config.cache_folder / "photos", config.cache_images)
    return ReadImages(config.cache_folder)


def require_readable(splits: dict[str, Split], checker: ImageChecker, workers: int = 0) -> None:
    """Decode every image that `checker` does not know yet, in `workers` threads (0: one per core).

    Raises `BrokenImagesError` for all that cannot be read.
    """
    broken = [
        f"{name}: {sentence}"
        for name, split in splits.items()
        for sentence in _unreadable(split.rows, checker, workers)
    ]
    if broken:
        raise BrokenImagesError(broken, sum(len(split) for split in splits.values()))


def _unreadable(rows: Dataset, checker: ImageChecker, workers: int = 0) -> list[str]:
    return list(find_unreadable(rows, checker, workers, progress=process_index() == 0).values())


def require_images(splits: dict[str, Split], checker: ImageChecker | None) -> None:
    """Raise `MissingImagesError` if images are missing; only then are the others decoded, to report all at once."""
    absent = {name: find_absent(split.rows) for name, split in splits.items() if split.regions is None}
    missing = [f"{name}: {image}" for name, images in absent.items() for image in images]
    if not missing:
        return
    broken = []
    total = sum(len(split) for split in splits.values())
    if checker is not None and 2 * len(missing) < total:  # otherwise the folder is probably wrong
        for name, images in absent.items():
            gone = {image.row for image in images}
            present = splits[name].rows.select([row for row in range(len(splits[name])) if row not in gone])
            broken += [f"{name}: {sentence}" for sentence in _unreadable(present, checker)]
    raise MissingImagesError(missing, total, broken)


def split_problems(splits: dict[str, Split]) -> list[str]:
    """What prevents training, apart from the images themselves; one sentence each."""
    problems = []
    others: list[tuple[str, pa.ChunkedArray, np.ndarray]] = []
    if not splits:
        problems.append("the annotations name no photos")
    for name, split in splits.items():
        if len(split) == 0:
            problems.append(f"split {name} is empty{_reasons(split)}")
        advice = "write or remove them, or set data.skip_missing: true"
        if empty := empty_captions(split):
            problems.append(f"split {name}: {counted(len(empty), 'empty caption')} ({shown(empty)}); {advice}")
        if without := images_without_captions(split):
            problems.append(
                f"split {name}: {counted(len(without), 'photo without', 'photos without')} captions ("
                f"{shown(without)}); {advice}"
            )
        ids = columns_of(split.rows, "image_id")["image_id"]
        hashes = string_hashes(ids)  # of millions of ids, only a few become objects
        again = Counter(ids.filter(pa.array(repeated(hashes))).to_pylist())
        if twice := [image_id for image_id, count in again.items() if count > 1]:
            problems.append(
                f"split {name}: {len(twice)} photo ids occur more than once ({shown(twice)}); "
                "all captions of a photo belong together, on neighbouring lines"
            )
        owner: dict[str, str] = {}
        for other, their_ids, their_hashes in others:
            theirs = set(their_ids.filter(pa.array(np.isin(their_hashes, hashes))).to_pylist())
            here = ids.filter(pa.array(np.isin(hashes, their_hashes))).to_pylist()
            owner |= {image_id: other for image_id in here if image_id in theirs and image_id not in owner}
        others.append((name, ids, hashes))
        if shared := list(owner):
            problems.append(
                f"{counted(len(shared), f'photo of split {name} is', f'photos of split {name} are')} in split "
                f"{owner[shared[0]]} too ({shown(shared)}); "
                "remove them from one of the two"
            )
    return problems


def _reasons(split: Split) -> str:
    """Why nothing is left of a split."""
    kinds = {
        "missing": ("photo is missing", "photos are missing"),
        "broken": ("photo cannot be read", "photos cannot be read"),
        "caption": ("caption is empty", "captions are empty"),
    }
    by_kind = {kind: [out for out in split.skipped if out.kind == kind] for kind in kinds}
    named = {kind: shown([out.item for out in found]) for kind, found in by_kind.items()}
    if broken := by_kind["broken"]:
        named["broken"] = shown([f"{out.item} ({out.reason})" for out in broken])
    return "".join(f"; {counted(len(found), *kinds[kind])}: {named[kind]}" for kind, found in by_kind.items() if found)
