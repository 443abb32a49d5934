"""The `annotations/scan_split` layout of SCAN and its successors: <split>_ids.txt next to <split>_caps.txt."""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from clip_itm.data.formats.annotation_files import first_existing, read_lines

FILE_NAMES = {"train": "train", "val": "dev", "test": "test"}


class ImageCaptions(NamedTuple):
    """An image and its captions, in the order of the file."""

    image_id: str
    captions: list[str]
    caption_ids: list[str]  # file:line, so that an error says where it is


def find_scan_split(root: Path) -> Path | None:
    """The folder of this layout below `root`, if there is one."""
    folder = first_existing(root, ("annotations/scan_split", "scan_split"))
    return folder if folder and folder.is_dir() else None


def scan_split_files(folder: Path) -> dict[str, tuple[Path, Path]]:
    """{split: (ids file, captions file)} of the splits that exist; ValueError if there are none."""
    files = {split: (folder / f"{name}_ids.txt", folder / f"{name}_caps.txt") for split, name in FILE_NAMES.items()}
    found = {split: pair for split, pair in files.items() if pair[0].exists() or pair[1].exists()}
    if not found:
        raise ValueError(f"{folder}: no train_ids.txt and train_caps.txt (nor dev_*, test_*)")
    return found


def read_scan_split(ids_file: Path, captions_file: Path, captions_per_image: int) -> Iterator[ImageCaptions]:
    """The images of one split, in file order, with their captions.

    Published files follow one of two conventions, and both are accepted: one id per caption (equal neighbours are one
    image) or one id per image (with `captions_per_image` caption lines each). Raises ValueError otherwise.
    """
    ids, captions = [line.strip() for line in read_lines(ids_file)], read_lines(captions_file)
    if "" in ids:
        raise ValueError(f"{ids_file}, line {ids.index('') + 1}: an empty photo id")
    if len(ids) == len(captions):
        runs = [(image_id, len(list(run))) for image_id, run in groupby(ids)]
    elif len(ids) * captions_per_image == len(captions):
        runs = [(image_id, captions_per_image) for image_id in ids]
    else:
        raise ValueError(
            f"{ids_file} has {len(ids)} ids and {captions_file.name} has {len(captions)} captions; expected one id per "
            f"caption ({len(captions)} ids) or one id per photo of {captions_per_image} captions "
            f"({len(ids) * captions_per_image} captions)"
        )
    start = 0
    for image_id, count in runs:
        lines = range(start, start + count)
        yield ImageCaptions(
            image_id, [captions[line] for line in lines], [f"{captions_file.name}:{line + 1}" for line in lines]
        )
        start += count
