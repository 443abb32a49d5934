"""Images in one subfolder per class, and the sentences that a zero-shot classifier makes from the classes."""

import logging
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import pyarrow as pa
from datasets import Dataset, Features

from clip_itm.data.configuration import DataConfig
from clip_itm.data.formats.annotation_files import written_lines
from clip_itm.data.formats.tables import read_table
from clip_itm.data.image_check import ReadImages, find_unreadable
from clip_itm.data.image_names import IMAGE_SUFFIXES, find_images, is_litter
from clip_itm.data.load import BrokenImagesError
from clip_itm.data.rows import ROW_FEATURES, Skipped, hash_strings
from clip_itm.distributed import process_index

logger = logging.getLogger(__name__)


DEFAULT_TEMPLATES = ("a photo of a {}.",)


@dataclass(frozen=True)
class ClassFolder:
    """`rows` {"image": {"path", "bytes"}}, one per image; `labels` is the index of its class in `names`.

    `templates` are sentences with {} in place of the name; `skipped` lists the images that `without_broken` left out.
    """

    rows: list[dict]
    labels: list[int]
    names: list[str]
    templates: tuple[str, ...]
    skipped: tuple[Skipped, ...] = ()

    @cached_property
    def prompts(self) -> pa.Array:
        """Every name in every template, with the prompts of a class one after another."""
        return pa.array([template.replace("{}", name) for name in self.names for template in self.templates])

    @cached_property
    def sha256(self) -> str:
        """Hash of prompts, labels, and the photos by folder, name and size: it does not depend on the root."""
        paths = [Path(row["image"]["path"]) for row in self.rows]
        photos = [f"{path.parent.name}/{path.name} {path.stat().st_size}" for path in paths]
        return hash_strings(pa.array([*self.prompts.to_pylist(), *map(str, self.labels), *photos]))


def read_class_folder(root: str | Path, templates: Path | None = None, classes: Path | None = None) -> ClassFolder:
    """The images below `root`, classes in the order of their folders' names.

    The name of a class is that of its folder, with spaces for underscores, or the one given by the table `classes`
    (CSV, TSV, JSONL or JSON, with the columns `folder` and `name`). `templates`: a file with a sentence per line, {}
    in place of the name. Raises ValueError for fewer than two classes, a class without images, and names that do not
    match the folders.
    """
    root = Path(root)
    folders = sorted(entry for entry in root.iterdir() if entry.is_dir()) if root.is_dir() else []
    folders = [entry for entry in folders if not is_litter(entry.name)]
    if len(folders) < 2:
        raise ValueError(f"{root}: expected a folder with a subfolder of photos for each of at least two classes")
    rows, labels = [], []
    for index, folder in enumerate(folders):
        found = find_images(folder)
        for sentence in found.skipped:
            logger.warning("left out: %s", sentence)
        if not found.files:
            others = f"; left out: {found.skipped[0]}" if found.skipped else ""
            raise ValueError(
                f"{folder}: this class has no photos ({', '.join(IMAGE_SUFFIXES)}){others}; add some, or remove it"
            )
        rows += [{"image": {"path": str(path), "bytes": None}} for path in found.files]
        labels += [index] * len(found.files)
    names = [folder.name.replace("_", " ") for folder in folders]
    if classes is not None:
        names = _names(classes, [folder.name for folder in folders])
    return ClassFolder(rows, labels, names, DEFAULT_TEMPLATES if templates is None else _templates(templates))


def without_broken(classes: ClassFolder, config: DataConfig) -> ClassFolder:
    """The classes without images that cannot be read, if `config.skip_broken` is set.

    Otherwise raises BrokenImagesError for such images. Raises ValueError if a class has none left.
    """
    images = [row["image"] for row in classes.rows]
    features = Features({name: ROW_FEATURES[name] for name in ("image", "image_id")})
    rows = Dataset.from_dict({"image": images, "image_id": [image["path"] for image in images]}, features=features)
    broken = find_unreadable(rows, ReadImages(config.cache_folder), progress=process_index() == 0)
    if not broken:
        return classes
    if not config.skip_broken:
        raise BrokenImagesError(list(broken.values()), len(images))
    kept = [index for index in range(len(images)) if index not in broken]
    labels = [classes.labels[index] for index in kept]
    if empty := [name for label, name in enumerate(classes.names) if label not in labels]:
        raise ValueError(f"no photo of {', '.join(empty[:20])} can be read: {next(iter(broken.values()))}")
    skipped = tuple(Skipped(images[index]["path"], "broken", sentence) for index, sentence in broken.items())
    logger.warning("%d of %d photos of classes cannot be read and are left out", len(broken), len(images))
    return replace(classes, rows=[classes.rows[index] for index in kept], labels=labels, skipped=skipped)


def _names(table: Path, folders: list[str]) -> list[str]:
    names = {}
    for where, values in read_table(table):
        folder, name = values.get("folder"), values.get("name")
        if not isinstance(folder, str) or not isinstance(name, str) or not name.strip():
            raise ValueError(f"{table}, {where}: expected a folder and a name, in columns called so; got {values}")
        names[folder] = name.strip()
    for what, some in (("no name for", [f for f in folders if f not in names]), ("no folder", names.keys() - folders)):
        if some:
            raise ValueError(f"{table}: {what} {len(some)} classes, such as {min(some)!r}")
    return [names[folder] for folder in folders]


def _templates(file: Path) -> tuple[str, ...]:
    lines = list(written_lines(file))
    for index, line in lines:
        if "{}" not in line:
            raise ValueError(f"{file}, line {index}: expected a sentence with {{}} where the class goes, got {line!r}")
    return tuple(line for _, line in lines)
