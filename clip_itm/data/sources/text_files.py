"""Photos, each with a text file of the same name next to it, in a folder and below, as captioning programs leave them.

    root/dogs/0001.jpg  root/dogs/0001.txt       a caption per line; .caption is read, too

The splits are folders `train`, `val` and `test` directly below the root if they exist, else a seeded hash of the
photo's path. A text without a photo is left out and reported; a photo without a text is a photo without captions, which
is an error unless `data.skip_missing` leaves it out.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from clip_itm.data.configuration import TextFilesData
from clip_itm.data.formats.annotation_files import existing_root, read_text, split_lines
from clip_itm.data.formats.splits import ALIASES, hashed_splits
from clip_itm.data.image_names import find_images, is_litter
from clip_itm.data.rows import Split, image_row
from clip_itm.data.skipped import shown
from clip_itm.data.sources.builder import CaptionedImages, Rows
from clip_itm.visible import counted

TEXTS = (".caption", ".txt")


def load(data: TextFilesData) -> dict[str, Split]:
    """The splits; ValueError if no photo has a text."""
    return TextFiles(data).load()


class TextFiles(CaptionedImages):
    """The rows of a folder of photos and texts."""

    def __init__(self, data: TextFilesData):
        self.root = existing_root(data.root)
        self.photos = find_images(self.root)
        self.texts = _texts_in({photo.parent for photo in self.photos.files})
        super().__init__(data)

    def stamps(self) -> list[str]:
        """Every photo by name, every text by name, size and time of change."""
        texts = [(path, path.stat()) for path in self.texts.values()]
        kept = [f"{path} {status.st_size} {status.st_mtime_ns}" for path, status in texts]
        return [*map(str, self.photos.files), *self.photos.skipped, *kept]

    def split_rows(self) -> dict[str, Rows]:
        """One row per photo; ValueError if no photo has a text, or two photos have one name."""
        rows: dict[str, dict] = {}
        named: dict[str, Path] = {}
        for photo in self.photos.files:
            name = os.path.splitext(photo)[0]
            if (other := named.setdefault(name, photo)) != photo:
                raise ValueError(f"{other} and {photo.name} have one name, and so one text; rename one of the two")
            text, image_id = self.texts.get(name), photo.relative_to(self.root).as_posix()
            lines = [] if text is None else list(_lines(text))
            place = "" if text is None else text.relative_to(self.root).as_posix()
            captions, ids = [line for _, line in lines], [f"{place}:{number}" for number, _ in lines]
            rows[image_id] = image_row(photo, image_id, captions, ids)
        if not named.keys() & self.texts.keys():
            raise ValueError(
                f"{self.root}: no photo there has a text of its name beside it ({counted(len(rows), 'photo')}, "
                f"{len(self.texts)} "
                "texts); expected dog.jpg and dog.txt"
            )
        if alone := [path.relative_to(self.root).as_posix() for name, path in self.texts.items() if name not in named]:
            self.notes.append(f"{counted(len(alone), 'text')} without a photo left out: {shown(alone)}")
        self.notes += [f"left out: {sentence}" for sentence in self.photos.skipped]
        return self._by_split(rows)

    def _by_split(self, rows: dict[str, dict]) -> dict[str, Rows]:
        own = {image_id: ALIASES.get(image_id.split("/")[0].lower()) if "/" in image_id else None for image_id in rows}
        if not {"train", "val"} <= set(own.values()):
            own = hashed_splits(rows, self.data)
        elif without := [image_id for image_id, split in own.items() if split is None]:
            raise ValueError(
                f"{self.root}: {counted(len(without), 'photo is', 'photos are')} in none of the folders train, "
                f"val and test: {shown(without)}"
            )
        found: dict[str, Rows] = {}
        for image_id, row in rows.items():
            found.setdefault(own[image_id], []).append(row)
        return found


def _texts_in(folders: set[Path]) -> dict[str, Path]:
    """{path without suffix: text} of the texts in some folders."""
    found: dict[str, Path] = {}
    for folder in sorted(folders):
        for name in sorted(os.listdir(folder), key=str.lower):  # if a photo has two texts, .txt is taken
            if name.lower().endswith(TEXTS) and not is_litter(name):
                found[os.path.splitext(folder / name)[0]] = folder / name
    return dict(sorted(found.items()))


def _lines(text: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(split_lines(read_text(text))[0], start=1):
        if line.strip():
            yield number, line
