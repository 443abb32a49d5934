"""MS COCO captions: the official folders, Karpathy's splits, or the scan_split layout.

    root/annotations/captions_{train,val}{2014,2017}.json     official: train and val, no test
    root/dataset_coco.json                                    Karpathy: train + restval, 5,000 val, 5,000 test
    root/annotations/scan_split/{train,dev,test}_{ids,caps}.txt

Layout "auto" takes Karpathy's file if there is one, then scan_split, then the official files of the newest year whose
image folders exist. Images are in {train,val}{2014,2017}/, in images/{train,val}{2014,2017}/ or in images/, named as
COCO ships them (COCO_val2014_000000000042.jpg, 000000000042.jpg) or COCO_2014_000000000042.jpg.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from clip_itm.data.configuration import CocoData
from clip_itm.data.formats.annotation_files import check_text, existing_root, first_existing, given_path, read_json
from clip_itm.data.formats.cells import captions_of
from clip_itm.data.formats.karpathy import read_karpathy
from clip_itm.data.formats.scan_split import find_scan_split, read_scan_split, scan_split_files
from clip_itm.data.rows import Split, image_row
from clip_itm.data.sources.builder import CaptionedImages, Rows

FOLDERS = ("train2014", "val2014", "train2017", "val2017")
KARPATHY_FILES = ("dataset_coco.json", "annotations/dataset_coco.json")
IMAGE_NAME = re.compile(r"(?:COCO_(?:train2014|val2014|2014)_)?(\d{12})\.jpg")


def image_folders(root: Path) -> list[Path]:
    """The folders below `root` that may hold images, and exist."""
    candidates = [parent / name for parent in (root, root / "images") for name in FOLDERS]
    return [folder for folder in [*candidates, root / "images"] if folder.is_dir()]


def index_images(root: Path) -> dict[int, str]:
    """{COCO id: image file} over all image folders; an id is the same image in the 2014 and the 2017 release."""
    images: dict[int, str] = {}
    for folder in image_folders(root):
        for name in os.listdir(folder):
            if match := IMAGE_NAME.fullmatch(name):
                images.setdefault(int(match[1]), os.path.join(folder, name))
    return images


def read_official(annotations: Path, image_folder: Path) -> Iterator[dict]:
    """Rows of one captions_*.json, in the order of its `images`; ValueError for anything malformed.

    Ids may be numbers, or numbers written as text.
    """
    data = read_json(annotations)
    if not isinstance(data, dict) or not all(isinstance(data.get(key), list) for key in ("images", "annotations")):
        raise ValueError(f"{annotations}: not a COCO captions file; expected an object with lists images, annotations")
    captions: dict[str, list[tuple[str, str]]] = {}
    place = None
    try:
        for number, image in enumerate(data["images"]):
            place = f"images[{number}]"
            captions[whole_number(image["id"], "id")] = []
            if not isinstance(image["file_name"], str):
                raise TypeError(f"file_name is {image['file_name']!r}")
            check_text(image["file_name"], f"{annotations}, {place}")
        for number, annotation in enumerate(data["annotations"]):
            place = f"annotations[{number}]"
            image_id = whole_number(annotation["image_id"], "image_id")
            if image_id not in captions:
                where = f"{annotations}: caption {annotation['id']}"
                raise ValueError(f"{where} is of photo {annotation['image_id']}, which is not among `images`")
            found = captions_of([annotation["caption"]], f"{annotations}, {place} (photo {image_id})")
            captions[image_id].append((found[0], str(annotation["id"])))
    except (KeyError, TypeError, AttributeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{annotations}, {place}: not as in a COCO captions file ({what})") from None
    for image in data["images"]:
        image_id = whole_number(image["id"], "id")
        texts = [list(column) for column in zip(*captions[image_id], strict=True)] or [[], []]
        yield image_row(image_folder / image["file_name"], image_id, *texts)


def whole_number(value: object, key: str) -> str:
    """An id given as a number (42, pandas' 42.0) or as text ("42", "000042"), as text without leading zeros.

    Raises TypeError, naming `key`, for anything else.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int | str) and not isinstance(value, bool):
        text = str(value).strip()
        if text:
            return str(int(text)) if text.isascii() and text.isdecimal() and len(text) < 100 else text
    raise TypeError(f"{key} is {value!r}")


def load(data: CocoData) -> dict[str, Split]:
    """Captions of MS COCO; ValueError if `root` has none of the layouts above."""
    return CocoImages(data).load()


class CocoImages(CaptionedImages):
    """The rows of all three layouts."""

    def __init__(self, data: CocoData):
        self.root = existing_root(data.root)
        self.karpathy = first_existing(self.root, KARPATHY_FILES)
        if data.karpathy:
            self.karpathy = given_path(data.karpathy, self.root)
        self.scan_split = find_scan_split(self.root)
        self.layout = data.layout if data.layout != "auto" else self._find_layout()
        if self.layout == "karpathy" and self.karpathy is None:
            raise ValueError(f"{self.root}: no dataset_coco.json here or in annotations/; name it with data.karpathy")
        if self.layout == "scan_split" and self.scan_split is None:
            raise ValueError(f"{self.root}: no folder annotations/scan_split")
        self.official = self._official_files() if self.layout == "official" else {}
        super().__init__(data)

    def _find_layout(self) -> str:
        if self.karpathy is not None:
            return "karpathy"
        return "scan_split" if self.scan_split is not None else "official"

    def _official_files(self) -> dict[str, tuple[Path, Path]]:
        """{split: (captions file, image folder)} of one year: the newest that has images."""
        years = {}
        for year in ("2017", "2014"):
            for split in ("train", "val"):
                name = f"captions_{split}{year}.json"
                if annotations := first_existing(self.root, (f"annotations/{name}", name)):
                    images = first_existing(self.root, (f"{split}{year}", f"images/{split}{year}"))
                    years.setdefault(year, {})[split] = (annotations, images or self.root / f"{split}{year}")
        if not years:
            raise ValueError(
                f"{self.root}: found none of dataset_coco.json, annotations/scan_split/, "
                "annotations/captions_{train,val}{2014,2017}.json"
            )
        with_images = [files for files in years.values() if all(images.is_dir() for _, images in files.values())]
        return (with_images or list(years.values()))[0]

    def depends_on(self) -> list[Path]:
        """The annotation files, and the image folders that are searched for file names."""
        if self.layout == "official":
            return [path for pair in self.official.values() for path in pair]
        if self.layout == "karpathy":
            return [self.karpathy, *image_folders(self.root)]
        files = scan_split_files(self.scan_split).values()
        return [file for pair in files for file in pair] + image_folders(self.root)

    def split_rows(self) -> dict[str, Rows]:
        """One row per image."""
        if self.layout == "official":
            return {split: read_official(*files) for split, files in self.official.items()}
        images = index_images(self.root)
        if self.layout == "karpathy":
            return read_karpathy(self.karpathy, lambda image: self._locate(image, images))
        files = scan_split_files(self.scan_split)
        return {split: self._scan_split_rows(*pair, images) for split, pair in files.items()}

    def _locate(self, image: dict, images: dict[int, str]) -> tuple[str, str]:
        expected = self.root / image.get("filepath", "images") / image["filename"]
        number = whole_number(image["cocoid"], "cocoid")
        return images.get(int(number) if number.isdecimal() else None, str(expected)), number

    def _scan_split_rows(self, ids_file: Path, captions_file: Path, images: dict[int, str]) -> Rows:
        for line, captions, caption_ids in read_scan_split(ids_file, captions_file, self.data.captions_per_image):
            if not line.isdecimal():
                raise ValueError(f"{ids_file}: photo id {line!r} is not a COCO number")
            expected = self.root / "images" / f"COCO_2014_{int(line):012d}.jpg"
            yield image_row(images.get(int(line), str(expected)), str(int(line)), captions, caption_ids)
