"""The one door from the `data:` section to splits, and what is checked of them before anything trains.

A source is a file in `data/sources/` with `load(section) -> dict[str, Split]`, its section in `data/configuration.py`,
and a line in `SOURCES`; docs/add_a_source.md adds one. What is missing, broken or empty is dealt with here, for all.
"""

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

from datasets import Dataset

from clip_itm.data.configuration import DataConfig
from clip_itm.data.image_cache import ImageCache
from clip_itm.data.left_out import (
    columns_of,
    empty_captions,
    find_absent,
    leave_out_absent,
    leave_out_broken,
    leave_out_empty_captions,
    notes,
    photos_without_captions,
    shown,
)
from clip_itm.data.photo_check import PhotoChecker, ReadPhotos, find_unreadable
from clip_itm.data.rows import SPLIT_NAMES, Split
from clip_itm.data.sources import cc120k, coco, flickr, folder, hub, regions, sample
from clip_itm.distributed import process_index

logger = logging.getLogger(__name__)

# data.source: what gives its splits, keyed train, val, test
SOURCES: dict[str, Callable[[Any], dict[str, Split]]] = {
    "coco": coco.load,
    "flickr": flickr.load,
    "cc120k": cc120k.load,
    "folder": folder.load,
    "hub": hub.load,
    "regions": regions.load,
    "sample": sample.load,
}


class MissingPhotosError(ValueError):
    """Photos of the annotations that are not there, or are files of zero bytes: all of them at once, in `photos`.

    Others that cannot be read, a sentence each in `broken`, are told along with them.
    """

    def __init__(self, photos: list[str], total: int, broken: list[str]):
        self.photos, self.broken = photos, broken
        super().__init__(
            f"{len(photos)} of {total} photos are missing or empty:\n  {shown(photos, separator=chr(10) + '  ')}\n"
            "Put them there, correct data.root, or set data.skip_missing: true to go on with the others."
            + (f"\n{BrokenPhotosError(broken, total)}" if broken else "")
        )


class BrokenPhotosError(ValueError):
    """Photos that are there and cannot be read: all of them at once, a sentence each in `photos`."""

    def __init__(self, photos: list[str], total: int):
        self.photos = photos
        super().__init__(
            f"{len(photos)} of {total} photos cannot be read:\n  {shown(photos, separator=chr(10) + '  ')}\n"
            "Put good copies there, or set data.skip_broken: true to go on with the others "
            "(`clip-itm data check RECIPE --json FILE` lists all)."
        )


def load_splits(config: DataConfig, verify: bool = True) -> dict[str, Split]:
    """The splits that the data set has, keyed train, val, test.

    Photos that are not there are an error (`MissingPhotosError`), or are left out and listed in `Split.left_out` where
    `skip_missing` is set or the source is known for it (CC120K by TSV, token files without split files). `skip_broken`
    leaves out photos that cannot be read: each is decoded once, now or in an earlier call. Either leaves out empty
    captions and photos without captions. An empty split and a photo id that occurs twice are always errors.
    `verify=False` leaves out the same and raises nothing: `clip-itm data check` reports it all.
    """
    found = SOURCES[config.source](config)
    splits = {name: _without_absent(found[name], config) for name in SPLIT_NAMES if name in found}
    if config.skip_missing or config.skip_broken:
        splits = {name: leave_out_empty_captions(split) for name, split in splits.items()}
    if config.skip_broken and config.reads_photos:
        if verify:  # what is told by names and captions comes before minutes of decoding
            _demand_sound(_first_photos(splits, config), None)
        checker = photo_checker(config)
        splits = {name: leave_out_broken(split, checker, config.max_photos) for name, split in splits.items()}
    splits = _first_photos(splits, config)
    if verify:
        for note in {note: None for split in splits.values() for note in notes(split)}:
            logger.warning(note)
        _demand_sound(splits, photo_checker(config) if config.reads_photos and not config.skip_broken else None)
    return splits


def _without_absent(split: Split, config: DataConfig) -> Split:
    every = config.skip_missing or split.missing_is_normal
    return leave_out_absent(split, every) if every or config.skip_broken else split


def _first_photos(splits: dict[str, Split], config: DataConfig) -> dict[str, Split]:
    if config.max_photos is None:
        return splits
    return {name: split.select(range(min(len(split), config.max_photos))) for name, split in splits.items()}


def _demand_sound(splits: dict[str, Split], checker: PhotoChecker | None) -> None:
    demand_photos(splits, checker)
    if problems := split_problems(splits):
        raise ValueError("\n".join(problems))


def photo_checker(config: DataConfig) -> PhotoChecker:
    """What decodes the photos of a data set: the cache of resized ones where there is one, which does it anyway."""
    if config.cache_images is not None:
        return ImageCache(config.cache_folder / "photos", config.cache_images)
    return ReadPhotos(config.cache_folder)


def demand_readable(splits: dict[str, Split], checker: PhotoChecker, workers: int = 0) -> None:
    """Decode every photo that `checker` does not know yet; `BrokenPhotosError` naming all that cannot be read."""
    broken = [
        f"{name}: {sentence}"
        for name, split in splits.items()
        for sentence in _unreadable(split.rows, checker, workers)
    ]
    if broken:
        raise BrokenPhotosError(broken, sum(len(split) for split in splits.values()))


def _unreadable(rows: Dataset, checker: PhotoChecker, workers: int = 0) -> list[str]:
    return list(find_unreadable(rows, checker, workers, progress=process_index() == 0).values())


def demand_photos(splits: dict[str, Split], checker: PhotoChecker | None) -> None:
    """`MissingPhotosError` where photos are not there; only then the others are decoded here, to tell all at once."""
    absent = {name: find_absent(split.rows) for name, split in splits.items() if split.regions is None}
    missing = [f"{name}: {photo}" for name, photos in absent.items() for photo in photos]
    if not missing:
        return
    broken = []
    total = sum(len(split) for split in splits.values())
    if checker is not None and 2 * len(missing) < total:  # else it is the folder that is wrong
        for name, photos in absent.items():
            gone = {photo.row for photo in photos}
            present = splits[name].rows.select([row for row in range(len(splits[name])) if row not in gone])
            broken += [f"{name}: {sentence}" for sentence in _unreadable(present, checker)]
    raise MissingPhotosError(missing, total, broken)


def split_problems(splits: dict[str, Split]) -> list[str]:
    """What training cannot go on with, apart from the photos themselves; one sentence each."""
    problems = []
    owner: dict[str, str] = {}
    if not splits:
        problems.append("the annotations name no photos")
    for name, split in splits.items():
        if len(split) == 0:
            problems.append(f"split {name} is empty{_reasons(split)}")
        advice = "write or remove them, or set data.skip_missing: true"
        if empty := empty_captions(split):
            problems.append(f"split {name}: {len(empty)} empty captions ({shown(empty)}); {advice}")
        if without := photos_without_captions(split):
            problems.append(f"split {name}: {len(without)} photos without captions ({shown(without)}); {advice}")
        ids = Counter(columns_of(split.rows, "image_id")["image_id"].to_pylist())
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


def _reasons(split: Split) -> str:
    """Why nothing is left of a split."""
    kinds = {"missing": "photos are missing", "broken": "photos cannot be read", "caption": "captions are empty"}
    by_kind = {kind: [out for out in split.left_out if out.kind == kind] for kind in kinds}
    named = {kind: shown([out.item for out in found]) for kind, found in by_kind.items()}
    if broken := by_kind["broken"]:
        named["broken"] = shown([f"{out.item} ({out.reason})" for out in broken])
    return "".join(f"; {len(found)} {kinds[kind]}: {named[kind]}" for kind, found in by_kind.items() if found)
