"""Which split an image belongs to: names as people write them, lists of names, or a hash of the image's id."""

import hashlib
from collections.abc import Collection, Iterable
from pathlib import Path

from clip_itm.data.configuration import HashedSplit
from clip_itm.data.formats.annotation_files import written_lines

ALIASES = {
    "train": "train",
    "training": "train",
    "restval": "train",  # Karpathy's part of the COCO validation images that everybody trains on
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


def split_name(value: object, where: str) -> str:
    """train, val or test, for any usual spelling; ValueError for anything else, beginning with `where`.

    Example:
        >>> split_name("Validation", "captions.csv:2")
        'val'
    """
    name = ALIASES.get(str(value).strip().lower())
    if name is None:
        raise ValueError(f"{where}: {value!r} is no split; write one of {', '.join(ALIASES)}")
    return name


def hash_split(image_id: str, seed: int, val_fraction: float, test_fraction: float) -> str:
    """The split of an image by SHA-256 of seed and id: the same on every machine, whatever other images there are."""
    digest = hashlib.sha256(f"{seed}:{image_id}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    if position < test_fraction:
        return "test"
    return "val" if position < test_fraction + val_fraction else "train"


def hashed_splits(image_ids: Iterable[str], data: HashedSplit) -> dict[str, str]:
    """{image id: split by hash}; ValueError, naming the keys to set, if train or val would stay empty."""
    fractions = data.split_seed, data.val_fraction, data.test_fraction
    splits = {image_id: hash_split(image_id, *fractions) for image_id in image_ids}
    require_filled(splits.values(), len(splits), data)
    return splits


def require_filled(found: Collection[str], photos: int, data: HashedSplit) -> None:
    """Raise ValueError, naming the keys to set, if none of the splits `found` of some `photos` is train, or val."""
    fractions = {"train": 1 - data.val_fraction - data.test_fraction, "val": data.val_fraction}
    for name, fraction in fractions.items():
        if photos and fraction and name not in found:
            key, change = ("test_fraction", "lower") if name == "train" else ("val_fraction", "higher")
            raise ValueError(
                f"data: {photos} photos are too few for a split by hash with data.val_fraction "
                f"{data.val_fraction:g} and data.test_fraction {data.test_fraction:g}: none falls to {name}. Set "
                f"data.{key} {change}, take another data.split_seed, or say the splits in a column of the table "
                "(data.split_column)"
            )


def read_split_files(files: dict[str, Path]) -> dict[str, str]:
    """{image name: split}, from {split: file with one image name per line}; ValueError for a name in two splits."""
    splits: dict[str, str] = {}
    for split, file in files.items():
        for number, line in written_lines(file):
            name = line.strip()
            other = splits.setdefault(name, split)
            if other != split:
                raise ValueError(f"{file}, line {number}: photo {name} is already in split {other}")
    return splits
