"""Data sets of precomputed region features in the layout of SCAN and its successors (docs/papers/crcl.md 7.1).

root/{train,dev,test,testall}_ims.npy    [n, R, C] float32 or float16, one row per image or one per caption
root/..._caps.txt                        a caption per line, all captions of an image on neighbouring lines
root/..._caps.tsv                        or `id<TAB>caption` (CC152K), without quoting
root/..._ids.txt                         optional: image ids, one per image or one per caption
root/..._clip_ims.npy, ..._clip_caps.npy optional: vectors [images, G] and [captions, G] of another model
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from clip_itm.data.configuration import RegionsData
from clip_itm.data.formats.annotation_files import existing_root, first_existing, given_path, read_json, read_lines
from clip_itm.data.region_features import RegionFeatures, mapped, require_repeated_rows
from clip_itm.data.rows import Split, image_row
from clip_itm.data.sources.builder import CaptionedImages, Rows

VAL_CAPTIONS = 5000  # what published programs read of val


def load(data: RegionsData) -> dict[str, Split]:
    """Rows with regions instead of images; ValueError if a file does not fit its captions."""
    return RegionsImages(data).load()


class RegionsImages(CaptionedImages):
    """The rows of a region data set, without images unless `images` and `id_mapping` name their files."""

    def __init__(self, data: RegionsData):
        self.root = existing_root(data.root)
        self.names = {"train": "train", "val": "dev", "test": data.test}
        if data.test == "testall" and not (self.root / "testall_ims.npy").exists():
            raise ValueError(f"{self.root}: there is no testall_ims.npy; data.test: test has the smaller test split")
        self.names = {split: name for split, name in self.names.items() if self._captions(name) is not None}
        if not self.names:
            raise ValueError(f"{self.root}: found no train_caps.txt or train_caps.tsv (nor dev_*, test_*)")
        super().__init__(data)

    def _captions(self, name: str) -> Path | None:
        return first_existing(self.root, (f"{name}_caps.txt", f"{name}_caps.tsv"))

    def depends_on(self) -> list[Path]:
        """The files of captions and ids, and the mapping from ids to images."""
        ids = [self.root / f"{name}_ids.txt" for name in self.names.values()]
        mapping = [given_path(self.data.id_mapping, self.root)] if self.data.id_mapping else []
        return [*map(self._captions, self.names.values()), *ids, *mapping]

    def load(self) -> dict[str, Split]:
        """The splits with their regions."""
        return {name: replace(split, regions=self.features(name)) for name, split in super().load().items()}

    def split_rows(self) -> dict[str, Rows]:
        """One row per image; ValueError if the ids or captions do not fit one another."""
        files = read_json(given_path(self.data.id_mapping, self.root)) if self.data.id_mapping else None
        if files is not None and not (isinstance(files, dict) and all(isinstance(n, str) for n in files.values())):
            raise ValueError(f"data.id_mapping {self.data.id_mapping}: expected an object from ids to names of photos")
        return {split: self._rows(split, files) for split in self.names}

    def read_captions(self, split: str) -> list[str]:
        """All captions of the split's file, before val is cut; ValueError if they do not divide among the images."""
        file = self._captions(self.names[split])
        captions = read_tsv_captions(file) if file.suffix == ".tsv" else read_lines(file)
        if len(captions) % self.data.captions_per_image:
            raise ValueError(
                f"{file} has {len(captions)} captions, which do not divide among photos of "
                f"{self.data.captions_per_image} (data.captions_per_image)"
            )
        return captions

    def kept_captions(self, split: str, count: int) -> int:
        """How many of the `count` captions of a split's file are read."""
        per_image = self.data.captions_per_image
        if split != "val" or self.data.whole_val:
            return count
        return min(count, VAL_CAPTIONS // per_image * per_image)

    def _rows(self, split: str, files: dict[str, str] | None) -> Iterator[dict]:
        captions, per_image = self.read_captions(split), self.data.captions_per_image
        name = self._captions(self.names[split]).name
        ids = self._ids(split, len(captions))
        for start in range(0, self.kept_captions(split, len(captions)), per_image):
            lines = range(start, start + per_image)
            texts = [captions[line] for line in lines], [f"{name}:{line + 1}" for line in lines]
            image_id = ids[start // per_image]
            row = image_row(self._image(image_id, files), image_id, *texts)
            yield row if files is not None else {**row, "image": None}

    def _image(self, image_id: str, files: dict[str, str] | None) -> Path:
        if files is None:
            return Path()
        if image_id not in files:
            raise ValueError(f"data.id_mapping: the photo {image_id} of {self.root} is not in it")
        return given_path(self.data.images, self.root) / files[image_id]

    def _ids(self, split: str, count: int) -> list[str]:
        """One id per image; without a file of ids, its index."""
        name, per_image = self.names[split], self.data.captions_per_image
        file = self.root / f"{name}_ids.txt"
        if not file.exists():
            if self.data.id_mapping:
                raise ValueError(f"{file}: there is no such file, and data.id_mapping needs the ids of the photos")
            return [f"{name}:{number}" for number in range(count // per_image)]
        ids = [line.strip() for line in read_lines(file)]
        if len(ids) not in (count, count // per_image):
            raise ValueError(
                f"{file} has {len(ids)} ids; expected one per photo ({count // per_image}) or one per caption ({count})"
            )
        return ids[::per_image] if len(ids) == count else ids

    def features(self, split: str) -> RegionFeatures:
        """The regions of a split; ValueError if a file does not fit its captions."""
        name, per_image = self.names[split], self.data.captions_per_image
        file, count = self.root / f"{name}_ims.npy", len(self.read_captions(split))
        array = mapped(file)
        if array.ndim != 3 or array.dtype not in (np.float32, np.float16):
            raise ValueError(f"{file}: expected float32 or float16 [n, R, C], found {array.dtype} {list(array.shape)}")
        if len(array) not in (count, count // per_image):
            raise ValueError(
                f"{file} has {len(array)} rows and the split {count} captions; expected one row per caption ({count}) "
                f"or one per photo of {per_image} captions ({count // per_image}); see data.captions_per_image"
            )
        rows_per_image = per_image if len(array) == count else 1
        require_repeated_rows(file, array, rows_per_image)
        kept = self.kept_captions(split, count)
        vectors: list[Path | None] = [None, None]
        if self.data.global_vectors:
            vectors = [self.root / f"{name}_clip_ims.npy", self.root / f"{name}_clip_caps.npy"]
            for path, rows in zip(vectors, (count // per_image, count), strict=True):
                if len(mapped(path)) != rows:
                    raise ValueError(f"{path} has {len(mapped(path))} rows, expected {rows}")
        return RegionFeatures(file, rows_per_image, np.arange(kept // per_image), np.arange(kept), *vectors)


def read_tsv_captions(file: Path) -> list[str]:
    """The second column of every line; quotes are text (docs/papers/crcl.md 7.2)."""
    captions = []
    for number, line in enumerate(read_lines(file), start=1):
        fields = line.split("\t")
        if len(fields) < 2:
            raise ValueError(f"{file}, line {number}: expected `id<TAB>caption`, got {line[:80]!r}")
        captions.append(fields[1])
    return captions
