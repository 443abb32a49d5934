"""From the `data:` section to verified splits: what can be known before a photo is decoded is checked here."""

import logging
from collections import Counter
from dataclasses import replace

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
from clip_itm.data.sources.builder import CaptionedImages, cache_folder
from clip_itm.distributed import process_index

logger = logging.getLogger(__name__)


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
    rows, missing_is_normal = read_rows(config)
    splits = {name: Split(name, rows[name]) for name in SPLIT_NAMES if name in rows}
    if config.source == "regions":
        source = _open_source(config)
        splits = {name: replace(split, regions=source.features(name)) for name, split in splits.items()}
    if config.skip_missing or missing_is_normal or config.skip_broken:
        every = config.skip_missing or missing_is_normal
        splits = {name: leave_out_absent(split, every) for name, split in splits.items()}
    if config.skip_missing or config.skip_broken:
        splits = {name: leave_out_empty_captions(split) for name, split in splits.items()}
    if config.skip_broken and has_photos(config):
        if verify:  # what is told by names and captions comes before minutes of decoding
            _demand_sound(_first_photos(splits, config), None)
        checker = photo_checker(config)
        splits = {name: leave_out_broken(split, checker, config.max_photos) for name, split in splits.items()}
    splits = _first_photos(splits, config)
    if verify:
        for note in {note: None for split in splits.values() for note in notes(split)}:
            logger.warning(note)
        _demand_sound(splits, photo_checker(config) if has_photos(config) and not config.skip_broken else None)
    return splits


def _first_photos(splits: dict[str, Split], config: DataConfig) -> dict[str, Split]:
    if config.max_photos is None:
        return splits
    return {name: split.select(range(min(len(split), config.max_photos))) for name, split in splits.items()}


def _demand_sound(splits: dict[str, Split], checker: PhotoChecker | None) -> None:
    demand_photos(splits, checker)
    if problems := split_problems(splits):
        raise ValueError("\n".join(problems))


def has_photos(config: DataConfig) -> bool:
    """Whether there are photos of a user's to be read: not drawn scenes, not precomputed regions."""
    return config.source not in ("regions", "sample")


def photo_checker(config: DataConfig) -> PhotoChecker:
    """What decodes the photos of a data set: the cache of resized ones where there is one, which does it anyway."""
    if config.cache_images is not None:
        return ImageCache(cache_folder(config) / "photos", config.cache_images)
    return ReadPhotos(cache_folder(config))


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


def read_rows(config: DataConfig) -> tuple[dict[str, Dataset], bool]:
    """Rows by split as the annotations give them, and whether this source is known for lists of absent photos."""
    if config.source == "hub":
        from clip_itm.data.sources.hub import load_hub

        return load_hub(config), False
    builder = _open_source(config)
    return builder.load(), builder.missing_is_normal


def _open_source(config: DataConfig) -> CaptionedImages:
    match config.source:
        case "coco":
            from clip_itm.data.sources.coco import CocoImages as Source
        case "flickr":
            from clip_itm.data.sources.flickr import FlickrImages as Source
        case "cc120k":
            from clip_itm.data.sources.cc120k import Cc120kImages as Source
        case "folder":
            from clip_itm.data.sources.folder import FolderImages as Source
        case "regions":
            from clip_itm.data.sources.regions import RegionsImages as Source
        case "sample":
            from clip_itm.data.sources.sample import SampleImages as Source
    return Source(config)


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
