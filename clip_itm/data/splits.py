"""Which split a photo belongs to: names as people write them, lists of names, or a hash of the photo's id."""

import hashlib
from pathlib import Path

from clip_itm.data.annotation_files import read_lines

ALIASES = {
    "train": "train",
    "training": "train",
    "restval": "train",  # Karpathy's part of the COCO validation photos that everybody trains on
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


def split_name(value: object, where: str) -> str:
    """train, val or test for any usual spelling; `where` says in the error what was being read."""
    name = ALIASES.get(str(value).strip().lower())
    if name is None:
        raise ValueError(f"{where}: {value!r} is no split; write one of {', '.join(ALIASES)}")
    return name


def hash_split(image_id: str, seed: int, val_fraction: float, test_fraction: float) -> str:
    """A photo's split by SHA-256 of seed and id: the same on every machine, whatever other photos there are."""
    digest = hashlib.sha256(f"{seed}:{image_id}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    if position < test_fraction:
        return "test"
    return "val" if position < test_fraction + val_fraction else "train"


def read_split_files(files: dict[str, Path]) -> dict[str, str]:
    """Photo name -> split, from {split: file with one photo name a line}."""
    splits: dict[str, str] = {}
    for split, file in files.items():
        for number, line in enumerate(read_lines(file), start=1):
            name = line.strip()
            other = splits.setdefault(name, split)
            if other != split:
                raise ValueError(f"{file}, line {number}: photo {name} is already in split {other}")
    return splits
