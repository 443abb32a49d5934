"""Flickr8k and Flickr30K: token file, Karpathy's JSON, or the scan_split layout.

    root/dataset_flickr8k.json, dataset_flickr30k.json        Karpathy's splits
    root/annotations/scan_split/{train,dev,test}_{ids,caps}.txt and image_name.txt; an id is a line number, from 0
    root/Flickr8k.token.txt, results_20130124.token           `image.jpg#k<TAB>caption`
    root/captions.txt                                         CSV with the header `image,caption`

Layout "auto" takes the first of these that exists. With a token file or captions.txt the splits are those of
Flickr_8k.{train,dev,test}Images.txt; without these files a seeded hash puts a tenth of the images into val and a tenth
into test, and images that are not in the folder are left out and reported (the published lists name some).
"""

import re
from pathlib import Path

from clip_itm.data.configuration import FlickrData
from clip_itm.data.formats.annotation_files import existing_root, first_existing, given_path, read_lines, written_lines
from clip_itm.data.formats.delimited import read_delimited
from clip_itm.data.formats.karpathy import read_karpathy
from clip_itm.data.formats.scan_split import find_scan_split, read_scan_split, scan_split_files
from clip_itm.data.formats.splits import hash_split, read_split_files
from clip_itm.data.rows import Split, image_row
from clip_itm.data.sources.builder import CaptionedImages, Rows
from clip_itm.visible import counted

KARPATHY_FILES = ("dataset_flickr8k.json", "dataset_flickr30k.json", "dataset.json")
TOKEN_FILES = ("Flickr8k.token.txt", "results_20130124.token", "captions.txt")
IMAGE_FOLDERS = ("images", "Images", "Flicker8k_Dataset", "Flickr8k_Dataset", "flickr30k-images", "flickr30k_images")
SPLIT_FILES = {"train": "train", "val": "dev", "test": "test"}
HASHED_SHARE = 0.1
TOKEN_LINE = re.compile(r"(?P<photo>[^\t]+)#(?P<number>\d+)\t(?P<caption>.*)")

Captions = dict[str, tuple[list[str], list[str]]]  # image name -> captions, caption ids


def read_token_file(path: Path) -> Captions:
    """Captions by image, in file order, from `image#k<TAB>caption` lines or from a CSV `image,caption`.

    Raises ValueError with file and line for anything else.
    """
    return _read_csv(path) if path.suffix.lower() == ".csv" or path.name == "captions.txt" else _read_token_lines(path)


def _read_token_lines(path: Path) -> Captions:
    texts_of: Captions = {}
    for number, line in written_lines(path):
        match = TOKEN_LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"{path}, line {number}: expected `photo.jpg#0<TAB>caption`, got {line[:80]!r}")
        captions, caption_ids = texts_of.setdefault(match["photo"], ([], []))
        captions.append(match["caption"])
        caption_ids.append(f"{match['photo']}#{match['number']}")
    return texts_of


def _read_csv(path: Path) -> Captions:
    texts_of: Captions = {}
    header, rows = read_delimited(path, ",")
    if [name.lower() for name in header] != ["image", "caption"]:
        raise ValueError(f"{path}, line 1: expected the header `image,caption`, got {','.join(header)[:80]!r}")
    for number, (file, caption) in rows:
        if not (file := file.strip()):
            raise ValueError(f"{path}, line {number}: column 'image' names no photo")
        captions, caption_ids = texts_of.setdefault(file, ([], []))
        caption_ids.append(f"{file}#{len(captions)}")
        captions.append(caption)
    return texts_of


def load(data: FlickrData) -> dict[str, Split]:
    """Captions of Flickr8k or Flickr30K; ValueError if `root` has none of the layouts above, or no image folder."""
    return FlickrImages(data).load()


class FlickrImages(CaptionedImages):
    """The rows of all layouts."""

    def __init__(self, data: FlickrData):
        self.root = existing_root(data.root)
        self.image_folder = given_path(data.images, self.root) if data.images else self._find_images()
        self.layout, self.annotations = self._find_annotations(data)
        names = {split: self.root / f"Flickr_8k.{name}Images.txt" for split, name in SPLIT_FILES.items()}
        self.split_files = {split: file for split, file in names.items() if file.exists()}
        self.missing_is_normal = self.layout == "token" and not self.split_files
        super().__init__(data)

    def _find_images(self) -> Path:
        folder = first_existing(self.root, IMAGE_FOLDERS)
        if folder is None:
            raise ValueError(f"{self.root}: no photo folder ({', '.join(IMAGE_FOLDERS)}); name it with data.images")
        return folder

    def _find_annotations(self, data: FlickrData) -> tuple[str, Path]:
        """The layout, and its file (scan_split: its folder)."""
        if data.annotations is not None:
            given = given_path(data.annotations, self.root)
            is_json = given.suffix.lower() == ".json"
            found = {"karpathy" if is_json else "scan_split" if given.is_dir() else "token": given}
        else:
            found = {
                "karpathy": first_existing(self.root, KARPATHY_FILES),
                "scan_split": find_scan_split(self.root),
                "token": first_existing(self.root, TOKEN_FILES),
            }
        for layout, path in found.items():
            if path is not None and data.layout in ("auto", layout):
                return layout, path
        names = (*KARPATHY_FILES, "annotations/scan_split/", *TOKEN_FILES)
        raise ValueError(
            f"{self.root}: no annotations for data.layout {data.layout!r}; looked for {', '.join(names)}; "
            "name the file with data.annotations"
        )

    def depends_on(self) -> list[Path]:
        """The annotation files, and with a token file the image folder."""
        if self.layout == "karpathy":
            return [self.annotations]
        if self.layout == "scan_split":
            files = scan_split_files(self.annotations).values()
            return [file for pair in files for file in pair] + [self._image_names_file()]
        return [self.annotations, *self.split_files.values(), self.image_folder]

    def split_rows(self) -> dict[str, Rows]:
        """One row per image."""
        if self.layout == "karpathy":
            name = "filename"
            return read_karpathy(self.annotations, lambda image: (str(self.image_folder / image[name]), image[name]))
        if self.layout == "scan_split":
            image_names = [line.strip() for line in read_lines(self._image_names_file())]
            if "" in image_names:
                line = image_names.index("") + 1
                raise ValueError(f"{self._image_names_file()}, line {line}: blank; expected the name of a photo")
            files = scan_split_files(self.annotations)
            return {split: self._scan_split_rows(*pair, image_names) for split, pair in files.items()}
        return self._token_rows()

    def _image_names_file(self) -> Path:
        return self.annotations / "image_name.txt"

    def _scan_split_rows(self, ids_file: Path, captions_file: Path, image_names: list[str]) -> Rows:
        for image_id, captions, caption_ids in read_scan_split(ids_file, captions_file, self.data.captions_per_image):
            if not image_id.isdecimal() or int(image_id) >= len(image_names):
                raise ValueError(
                    f"{ids_file}: photo id {image_id!r} is not a line number of image_name.txt, "
                    f"which has lines 0 to {len(image_names) - 1}"
                )
            yield image_row(self.image_folder / image_names[int(image_id)], image_id, captions, caption_ids)

    def _token_rows(self) -> dict[str, list[dict]]:
        texts_of = read_token_file(self.annotations)
        if self.split_files:
            splits = read_split_files(self.split_files)
            names = list(splits)
            self._note_images_without_split(set(texts_of) - set(splits), texts_of)
        else:
            splits = {name: hash_split(name, self.data.split_seed, HASHED_SHARE, HASHED_SHARE) for name in texts_of}
            names = list(texts_of)
        if without := [name for name in names if name not in texts_of]:
            raise ValueError(
                f"{self.annotations}: no caption for {counted(len(without), 'photo')} of the split files: "
                f"{without[:20]}"
            )
        rows: dict[str, list[dict]] = {}
        for name in names:
            rows.setdefault(splits[name], []).append(image_row(self.image_folder / name, name, *texts_of[name]))
        return rows

    def _note_images_without_split(self, names: set[str], texts_of: Captions) -> None:
        file = self.annotations.name
        absent = sorted(name for name in names if not (self.image_folder / name).exists())
        if absent:
            lines = sum(len(texts_of[name][0]) for name in absent)
            self.notes.append(
                f"{file}: {counted(lines, 'caption')} of {counted(len(absent), 'photo that is', 'photos that are')} "
                f"not there: {', '.join(absent[:20])}"
            )
        if unused := len(names) - len(absent):
            self.notes.append(f"{file}: {counted(unused, 'photo is', 'photos are')} in no split file")
