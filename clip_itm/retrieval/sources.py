"""What can be indexed: lists, folders and data sets of images or captions, as ids and entries of one modality."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip_itm.data.images import image_paths
from clip_itm.data.inputs import modality_of
from clip_itm.retrieval.images import image_files


@dataclass(frozen=True)
class Source:
    """`entries` (captions, or what `read_image` reads) of one modality, and the id of each.

    `paths`: the file of each image, None without a file (and for captions). `skipped`: a sentence for each file that
    looks like an image and cannot be read.
    """

    modality: str
    ids: Sequence[str]
    entries: Sequence[Any]
    paths: Sequence[str | None]
    skipped: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.ids)


def make_source(gallery: Any, modality: str | None = None) -> Source:
    """A folder of images or of tars of them, a list of images or of captions, a mapping id -> image or
    caption, or a `datasets.Dataset`.

    `modality` ("image", "text") is needed if a data set has both; otherwise it is recognised. Ids are paths below the
    folder, paths as given, the data set's own (`image_id`, `caption_ids`), else the index in the list.
    Raises ValueError for an empty gallery, and for images mixed with captions.

    Example:
        >>> make_source({"first": "a dog in the snow", "second": "two people"}).ids
        ['first', 'second']
    """
    if isinstance(gallery, str | Path):
        return _folder(Path(gallery), modality)
    if hasattr(gallery, "column_names"):
        return _dataset(gallery, modality)
    return list_source(gallery, modality)


def list_source(gallery: Any, modality: str | None = None) -> Source:
    """See `make_source`; only for lists and mappings."""
    if isinstance(gallery, Mapping):
        return _listed(list(gallery.values()), modality, [str(id) for id in gallery])
    return _listed(list(gallery), modality)


def _folder(folder: Path, modality: str | None) -> Source:
    if modality == "text":
        raise ValueError(f"{folder}: captions are indexed from a list or a data set, not from a folder")
    if holds_shards(folder):
        return _shards(folder)
    found = image_files(folder)
    paths = [str(file.absolute()) for file in found.files]
    ids = [file.relative_to(folder).as_posix() for file in found.files]
    return Source("image", ids, paths, paths, found.skipped)


def holds_shards(gallery: Path) -> bool:
    """Whether photos are in tars or in Parquet files there."""
    from clip_itm.data.recognised import recognised

    found = recognised(gallery)
    return found is not None and found.section["source"] in ("webdataset", "parquet")


def _shards(gallery: Path) -> Source:
    """All photos of tars or Parquet files, under their ids there; small copies of them are kept in the index."""
    from datasets import concatenate_datasets
    from pydantic import TypeAdapter

    from clip_itm.data.configuration import DataConfig
    from clip_itm.data.load import load_splits
    from clip_itm.data.recognised import recognised

    section = recognised(gallery).section | {"val_fraction": 0, "test_fraction": 0}
    splits = load_splits(TypeAdapter(DataConfig).validate_python(section), verify=False)
    return _images_of(concatenate_datasets([split.rows for split in splits.values()]), "image")


def _listed(entries: list, modality: str | None, ids: list[str] | None = None) -> Source:
    if not entries:
        raise ValueError("there is nothing to index: the gallery is empty")
    found = [modality_of(entry) if modality is None else modality for entry in entries]
    if len(set(found)) > 1:
        other = next(index for index, kind in enumerate(found) if kind != found[0])
        raise ValueError(
            f"a gallery holds photos or captions, not both: entry 0 is {found[0]}, entry {other} is {found[other]} "
            '(modality="text" or "image" says what all of them are)'
        )
    entries = [entry[found[0]] if isinstance(entry, dict) and found[0] in entry else entry for entry in entries]
    if found[0] == "text":
        if wrong := [index for index, entry in enumerate(entries) if not isinstance(entry, str)]:
            raise ValueError(f"entry {wrong[0]} is {type(entries[wrong[0]]).__name__}; expected a caption (text)")
        return Source("text", ids or _numbers(entries), entries, [None] * len(entries))
    paths = [_path(entry) for entry in entries]
    named = [str(entry) if isinstance(entry, str | Path) else str(index) for index, entry in enumerate(entries)]
    return Source("image", ids or named, entries, paths)


def _path(image: Any) -> str | None:
    if isinstance(image, dict) and image.get("bytes") is None:
        image = image.get("path")
    if not isinstance(image, str | Path):
        return None
    text = str(image)
    return text if text.startswith(("http://", "https://")) else str(Path(text).absolute())


def _dataset(rows, modality: str | None) -> Source:
    """Rows of this package's sources (image, image_id, captions, caption_ids), or any data set with one such column."""
    columns = rows.column_names
    image_columns = [name for name in columns if type(rows.features[name]).__name__ == "Image"]
    texts = [name for name in ("captions", "caption", "text") if name in columns]
    if modality is None:
        if image_columns and texts:
            raise ValueError(
                f"this data set has photos ({image_columns[0]}) and captions ({texts[0]}): say which to index, "
                'modality="image" or modality="text"'
            )
        modality = "image" if image_columns else "text"
    column = next(iter(image_columns if modality == "image" else texts), None)
    if column is None:
        raise ValueError(f"no column of {modality}s in this data set; found {', '.join(columns)}")
    if len(rows) == 0:
        raise ValueError("there is nothing to index: the data set is empty")
    if modality == "image":
        return _images_of(rows, column)
    captions = rows[column][:]
    if captions and isinstance(captions[0], list):
        owned = rows["caption_ids"][:] if "caption_ids" in columns else None
        ids = [id for row in owned for id in row] if owned else None
        captions = [caption for row in captions for caption in row]
        return Source("text", ids or _numbers(captions), captions, [None] * len(captions))
    ids = [str(id) for id in rows["caption_id"]] if "caption_id" in columns else _numbers(captions)
    return Source("text", ids, captions, [None] * len(captions))


def _images_of(rows, column: str) -> Source:
    from datasets import Image

    stored = rows.cast_column(column, Image(decode=False)).select_columns([column])
    paths = image_paths(stored, column)
    ids = [str(id) for id in rows["image_id"]] if "image_id" in rows.column_names else _numbers(paths)
    return Source("image", ids, _Column(stored, column), paths)


@dataclass(frozen=True)
class _Column(Sequence):
    """One column of a data set, a row at a time."""

    rows: Any
    name: str

    def __getitem__(self, index):
        return self.rows[index][self.name]

    def __len__(self) -> int:
        return len(self.rows)


def _numbers(entries: Sequence) -> list[str]:
    return [str(index) for index in range(len(entries))]
