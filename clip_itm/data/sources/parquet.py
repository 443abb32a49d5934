"""Parquet files of photos and captions: a column of encoded photos (bytes, or {bytes, path}) or of their paths.

A single photo cannot be read out of Parquet: the rows are copied once into memory-mapped Arrow files in the cache, a
part of them at a time, whatever their size; that takes as much disk as the Parquet files do. Rows with the same id are
one photo with several captions. A photo's id is in a column `uid`, `image_id` or `key`, else it is a hash of its bytes,
or its path; the id of a caption is its file and row. A path begins at the folder of its file.

A table of URLs has no photos: the error is the command that downloads them.
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from clip_itm.data.configuration import ParquetData
from clip_itm.data.formats.annotation_files import BrokenRow, check_text
from clip_itm.data.formats.cells import captions_of, ids_of, weights_of
from clip_itm.data.formats.file_list import ListedFile, find_files, splits_of
from clip_itm.data.formats.grouped import one_row_per_image, repeated, string_hashes
from clip_itm.data.formats.name_spelling import URL, canonical, check_name
from clip_itm.data.formats.splits import hash_split, require_filled, split_name
from clip_itm.data.formats.tables import CAPTION_COLUMNS, IMAGE_COLUMNS, WEIGHT_COLUMNS, find_column
from clip_itm.data.formats.url_tables import refuse_url_table, url_column
from clip_itm.data.remote import is_remote, open_remote
from clip_itm.data.rows import SPLIT_NAMES, WEIGHTED_ROW_FEATURES, Split
from clip_itm.data.skipped import shown
from clip_itm.data.sources.builder import CaptionedTables, without_idle_weights
from clip_itm.reading import reading
from clip_itm.visible import counted

ID_COLUMNS = ("uid", "image_id", "key")
BATCH = 256  # rows that are in memory at once, with their photos
TEXTS = pa.schema(
    {
        "row": pa.int64(),
        "image_id": pa.string(),
        "captions": pa.list_(pa.string()),
        "caption_ids": pa.list_(pa.string()),
        "caption_weights": pa.list_(pa.float32()),
        "split": pa.int8(),
    }
)


class Columns(NamedTuple):
    """The names of a file's columns; None for those that it does not have."""

    image: str
    caption: str
    id: str | None
    caption_ids: str | None
    weights: str | None
    split: str | None


def load(data: ParquetData) -> dict[str, Split]:
    """The splits; ValueError if a file or a column is missing, or a row cannot be used."""
    return ParquetTables(data).load()


class ParquetTables(CaptionedTables):
    """The rows of Parquet files."""

    def __init__(self, data: ParquetData):
        self.files = find_files(data.root, (".parquet",))
        self.split_of_file = splits_of(self.files, data.splits, data.root)
        super().__init__(data)

    def stamps(self) -> list[str]:
        """Every file with its size and time of change."""
        return ["\n".join(map(str, file)) for file in self.files]

    def load(self) -> dict[str, Split]:
        """The splits, with weights only where some weight is not 1."""
        return {name: replace(split, rows=without_idle_weights(split.rows)) for name, split in super().load().items()}

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=WEIGHTED_ROW_FEATURES)

    def split_tables(self) -> dict[str, Iterator[pa.Table]]:
        """Tables of rows, with the photos of `BATCH` rows in memory at a time."""
        texts = self._texts()
        own = texts["split"].to_numpy()
        again = repeated(string_hashes(texts["image_id"]))
        if again.any():
            self._require_same_photos(texts, again)
        if self.data.split_column is None and not any(self.split_of_file):
            require_filled([SPLIT_NAMES[number] for number in np.unique(own)], len(texts), self.data)
        found = {}
        for number, name in enumerate(SPLIT_NAMES):
            if (mask := own == number).any():
                rows = texts.filter(pa.array(mask))
                found[name] = self._with_photos(one_row_per_image(rows) if again.any() else rows)
        return found

    def _texts(self) -> pa.Table:
        """What the rows have besides the photos, in the order of files and rows."""
        parts, broken, start = [], [], 0
        for file, split in zip(self.files, self.split_of_file, strict=True):
            for batch, columns, first in self._batches(file, with_photos=None):
                parts.append(self._texts_of(batch, columns, file, first, start, split, broken))
                start += len(batch)
        if broken and not self.data.skip_broken:
            told = shown([str(error) for error in broken], separator="\n  ")
            raise BrokenRow(
                f"{self.data.root}: {counted(len(broken), 'row cannot', 'rows cannot')} be used:\n  {told}\n"
                "Mend them, or set data.skip_broken: true to go on without them."
            )
        if not parts:
            raise ValueError(f"{self.data.root}: the files have no rows")
        return pa.concat_tables(parts)

    def _texts_of(
        self,
        batch: pa.RecordBatch,
        columns: Columns,
        file: ListedFile,
        first: int,
        start: int,
        split: str | None,
        broken: list[BrokenRow],
    ) -> pa.Table:
        rows: dict[str, list[Any]] = {name: [] for name in TEXTS.names}
        cells = {name: batch[name].to_pylist() for name in columns[1:] if name is not None}
        photos = _photos(batch[columns.image], file) if columns.id is None else [None] * len(batch)
        for number in range(len(batch)):
            where = f"{file.label}:{first + number}"
            image_id = _id_of(photos[number], where) if columns.id is None else cells[columns.id][number]
            if image_id in (None, ""):
                raise ValueError(f"{where}: column {columns.id!r} is empty; name another with data.id_column")
            try:
                captions = captions_of(cells[columns.caption][number], f"{where}, column {columns.caption!r}")
            except BrokenRow as error:
                broken.append(error)
                captions = [""]
            ids = [where] if len(captions) == 1 else [f"{where}:{place}" for place in range(len(captions))]
            weights = [1.0] * len(captions)
            if columns.caption_ids is not None:
                ids = ids_of(cells[columns.caption_ids][number], len(captions), f"{where}, {columns.caption_ids!r}")
            if columns.weights is not None:
                weights = weights_of(cells[columns.weights][number], len(captions), f"{where}, {columns.weights!r}")
            rows["row"].append(start + number)
            rows["image_id"].append(check_text(str(image_id), where))
            rows["captions"].append([caption.strip() for caption in captions])
            rows["caption_ids"].append(ids)
            rows["caption_weights"].append(weights)
            cell = None if columns.split is None else cells[columns.split][number]
            rows["split"].append(self._split(cell, columns.split, split, str(image_id), where))
        return pa.table(rows, schema=TEXTS)

    def _split(self, cell: Any, column: str | None, of_file: str | None, image_id: str, where: str) -> int:
        if column is not None:
            return SPLIT_NAMES.index(split_name(cell, f"{where}, column {column!r}"))
        if any(self.split_of_file):
            return len(SPLIT_NAMES) if of_file is None else SPLIT_NAMES.index(of_file)
        data = self.data
        return SPLIT_NAMES.index(hash_split(image_id, data.split_seed, data.val_fraction, data.test_fraction))

    def _require_same_photos(self, texts: pa.Table, again: np.ndarray) -> None:
        """Raise ValueError for an id that stands for two photos: all photos are read once more."""
        seen: dict[str, tuple[str, str]] = {}
        row = 0
        for file in self.files:
            for batch, columns, first in self._batches(file, with_photos=True):
                photos = _photos(batch[columns.image], file)
                for number in np.flatnonzero(again[row : row + len(batch)]).tolist():
                    where = f"{file.label}:{first + number}"
                    image_id, own = texts["image_id"][row + number].as_py(), _id_of(photos[number], "null")
                    photo, place = seen.setdefault(image_id, (own, where))
                    if photo != own:
                        raise ValueError(
                            f"{self.data.root}: the id {image_id!r} stands for two photos, {place} and {where}; name "
                            "the column that tells photos apart with data.id_column"
                        )
                row += len(batch)

    def _with_photos(self, texts: pa.Table) -> Iterator[pa.Table]:
        """The rows of `texts`, which ascend by `row`, with their photos."""
        wanted = texts["row"].to_numpy()
        row = 0
        for file in self.files:
            for batch, columns, _ in self._batches(file, with_photos=True):
                start, end = np.searchsorted(wanted, [row, row + len(batch)])
                if end > start:
                    own = batch[columns.image].take(pa.array(wanted[start:end] - row))
                    photos = [{"path": path, "bytes": content} for path, content, _ in _photos(own, file)]
                    image = pa.array(photos, type=WEIGHTED_ROW_FEATURES.arrow_schema.field("image").type)
                    part = texts.slice(start, end - start).drop_columns(["row", "split"])
                    yield part.add_column(0, "image", image).select(list(WEIGHTED_ROW_FEATURES))
                row += len(batch)

    def _batches(self, file: ListedFile, with_photos: bool | None) -> Iterator[tuple[pa.RecordBatch, Columns, int]]:
        """(rows, columns, number of the first row) of a file.

        `with_photos`: only the column of photos; otherwise the other columns, and photos if there are no ids.
        """
        with reading(file.path, "a Parquet file"):
            source = open_remote(file.path) if is_remote(file.path) else file.path
            with pq.ParquetFile(source, memory_map=not is_remote(file.path)) as parquet:
                columns = self._columns(parquet.schema_arrow, file)
                names = [columns.image] if with_photos or columns.id is None else []
                names += [] if with_photos else [name for name in columns[1:] if name is not None]
                first = 0
                for batch in parquet.iter_batches(BATCH, columns=list(dict.fromkeys(names)), use_threads=False):
                    yield batch, columns, first
                    first += len(batch)

    def _columns(self, schema: pa.Schema, file: ListedFile) -> Columns:
        names, data = schema.names, self.data
        image = data.image_column or find_column(names, *IMAGE_COLUMNS, "jpg", "png", "webp", "bytes", "image_bytes")
        if image is None and url_column(names) is not None:
            refuse_url_table(data.root if is_remote(file.path) or len(self.files) > 1 else file.path, names)
        caption = data.caption_column or find_column(names, *CAPTION_COLUMNS, "txt")
        asked = {"image_column": image, "caption_column": caption, "id_column": data.id_column}
        asked |= {"split_column": data.split_column}
        for key, name in asked.items():
            needed = key in ("image_column", "caption_column") or name is not None
            if needed and name not in names:
                wanted = f"{name!r} (data.{key})" if name else f"with a usual name for data.{key}"
                raise ValueError(f"{file.path}: no column {wanted}; the columns are {', '.join(names)}")
        kind = schema.field(image).type
        fields = {field.name for field in kind} if pa.types.is_struct(kind) else set()
        plain = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        if not (plain or pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or {"bytes", "path"} <= fields):
            raise ValueError(
                f"{file.path}: column {image!r} holds {kind}; expected bytes of photos, {{bytes, path}} or paths"
            )
        caption_ids = find_column(names, "caption_ids", "caption_id")
        return Columns(
            image,
            caption,
            data.id_column or find_column(names, *ID_COLUMNS),
            caption_ids,
            find_column(names, *WEIGHT_COLUMNS),
            data.split_column,
        )


class Photo(NamedTuple):
    """What a cell says about a photo; without bytes, `path` is where the file is, and `name` what the cell calls it."""

    path: str | None
    content: bytes | None
    name: str | None


def _photos(column: pa.Array, file: ListedFile) -> list[Photo]:
    """The photos of some rows."""
    found = []
    for cell in column.to_pylist():
        path, content = (cell.get("path"), cell.get("bytes")) if isinstance(cell, dict) else (None, cell)
        if isinstance(content, str):
            path, content = content, None
        if content is None and path:
            if URL.match(path):
                refuse_url_table(file.path, ["url"], "url")
            name = canonical(check_name(path, file.path))
            found.append(Photo(os.path.normpath(os.path.join(os.path.dirname(file.path), name)), None, name))
        else:
            found.append(Photo(path, content, path))
    return found


def _id_of(photo: Photo, where: str) -> str:
    """A hash of the photo's bytes, or the name of its file; `where` for a row without a photo."""
    return photo.name or where if photo.content is None else xxhash.xxh3_128_hexdigest(photo.content)
