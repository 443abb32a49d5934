"""CC120K, and other parts of Conceptual Captions: one caption per image.

    root/annotations/scan_split/{train,dev,test}_{ids,caps}.txt with images root/images/<id>.jpg
    root/{train,dev,test}.tsv      `caption<TAB>path or URL`, images below root/images

A path starts at the image folder; the last part of a URL is the file name there. Web images vanish: rows of a TSV
without an image are left out, counted and named. If several URLs end in the same name, nobody can tell whose image the
file is, so all of them are left out.
"""

from collections import Counter
from pathlib import Path
from urllib.parse import unquote, urlsplit

from clip_itm.data.configuration import Cc120kData
from clip_itm.data.formats.annotation_files import existing_root, first_existing, given_path, written_lines
from clip_itm.data.formats.scan_split import find_scan_split, read_scan_split, scan_split_files
from clip_itm.data.rows import Split, image_row
from clip_itm.data.sources.builder import CaptionedImages, Rows
from clip_itm.visible import counted

TSV_FILES = {
    "train": ("train.tsv",),
    "val": ("dev.tsv", "val.tsv", "validation.tsv"),
    "test": ("test.tsv",),
}


def image_name(reference: str) -> str:
    """The image's path below the image folder, from a path or a URL."""
    if "://" in reference:
        return unquote(urlsplit(reference).path).rsplit("/", 1)[-1]
    return reference.removeprefix("./")


def read_tsv(path: Path) -> list[tuple[int, str, str]]:
    """(line number, caption, path or URL) of every line; quotes mean nothing, blank lines are skipped."""
    rows = []
    for number, line in written_lines(path):
        fields = line.split("\t")
        if len(fields) != 2 or not fields[1].strip():
            raise ValueError(f"{path}, line {number}: expected `caption<TAB>path or URL`, got {line[:80]!r}")
        rows.append((number, fields[0], fields[1].strip()))
    return rows


def load(data: Cc120kData) -> dict[str, Split]:
    """Captions from the web, one per image; ValueError if `root` has neither of the layouts above."""
    return Cc120kImages(data).load()


class Cc120kImages(CaptionedImages):
    """The rows of both layouts."""

    def __init__(self, data: Cc120kData):
        self.root = existing_root(data.root)
        self.image_folder = given_path(data.images or "images", self.root)
        self.scan_split = find_scan_split(self.root)
        files = {split: first_existing(self.root, names) for split, names in TSV_FILES.items()}
        self.tsv_files = {split: file for split, file in files.items() if file is not None}
        self.layout = data.layout if data.layout != "auto" else "scan_split" if self.scan_split else "tsv"
        if not (self.scan_split if self.layout == "scan_split" else self.tsv_files):
            raise ValueError(f"{self.root}: found no annotations/scan_split/ and no train.tsv, dev.tsv, test.tsv")
        self.missing_is_normal = self.layout == "tsv"
        super().__init__(data)

    def depends_on(self) -> list[Path]:
        """The files of ids and captions, or the TSV files."""
        if self.layout == "scan_split":
            return [file for pair in scan_split_files(self.scan_split).values() for file in pair]
        return list(self.tsv_files.values())

    def split_rows(self) -> dict[str, Rows]:
        """One row per image; images of a TSV whose file name several URLs share are left out."""
        if self.layout == "tsv":
            return self._tsv_rows()
        files = scan_split_files(self.scan_split)
        return {
            split: (
                image_row(self.image_folder / f"{image_id}.jpg", image_id, captions, caption_ids)
                for image_id, captions, caption_ids in read_scan_split(*pair, captions_per_image=1)
            )
            for split, pair in files.items()
        }

    def _tsv_rows(self) -> dict[str, list[dict]]:
        lines = {split: read_tsv(file) for split, file in self.tsv_files.items()}
        references = {reference for rows in lines.values() for _, _, reference in rows}
        owners = Counter(image_name(reference) for reference in references)
        splits: dict[str, list[dict]] = {}
        for split, file in self.tsv_files.items():
            texts_of: dict[str, tuple[list[str], list[str]]] = {}
            ambiguous = []
            for number, caption, reference in lines[split]:
                name = image_name(reference)
                if owners[name] > 1 or not name:
                    ambiguous.append(reference)
                    continue
                captions, caption_ids = texts_of.setdefault(name, ([], []))
                captions.append(caption)
                caption_ids.append(f"{file.name}:{number}")
            if ambiguous:
                self.notes.append(
                    f"{file.name}: {counted(len(ambiguous), 'row left out', 'rows left out')}, because their "
                    "file name is not theirs alone: "
                    f"{', '.join(ambiguous[:20])}"
                )
            splits[split] = [image_row(self.image_folder / name, name, *texts) for name, texts in texts_of.items()]
        return splits
