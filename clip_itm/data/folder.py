"""People's own data: a photo folder and a table (CSV, TSV, JSONL) with an image column and one or several captions.

Captions of a photo may stand in a list (JSONL, or a JSON list in a CSV cell), in several columns, or in several rows.
The split comes from a column, from `split_files` (lists of photo names, or one caption table a split), or from a seeded
hash of the photo's path, so that adding photos never moves old ones to another split.

A column `caption_weights` (or `caption_weight`) says how much each caption of the row counts in training, from 0 to 1.
The columns `image_id` and `caption_ids`, both together, keep the ids that photo and captions have elsewhere; without
them ids are the path below the root and the place in the table.
"""

import csv
import io
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import datasets
import pyarrow.compute as pc

from clip_itm.data.annotation_files import existing_root, first_existing, given_path, read_lines, read_text
from clip_itm.data.builder import CaptionedImages, photo_row
from clip_itm.data.configuration import FolderData
from clip_itm.data.rows import WEIGHTED_ROW_FEATURES
from clip_itm.data.splits import hash_split, read_split_files, split_name

TABLES = ("metadata.jsonl", "metadata.csv", "captions.jsonl", "captions.csv", "captions.tsv", "captions.txt")
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl")
IMAGE_COLUMNS = ("image", "file_name", "filename", "filepath", "image_path", "path", "file", "photo", "img")
CAPTION_COLUMNS = ("captions", "caption", "texts", "text", "sentences", "sentence", "description", "title")
WEIGHT_COLUMNS = ("caption_weights", "caption_weight")
ID_COLUMNS = ("image_id", "caption_ids")


def read_table(path: Path) -> Iterator[tuple[str, dict]]:
    """(file:line, values) of every row; CSV with commas, TSV with tabs, JSONL with an object a line."""
    if path.suffix == ".jsonl":
        for number, line in enumerate(read_lines(path), start=1):
            try:
                values = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: not valid JSON ({error.msg})") from None
            if not isinstance(values, dict):
                raise ValueError(f"{path}, line {number}: expected an object with columns as keys, got {line[:80]!r}")
            yield f"{path.name}:{number}", values
        return
    dialect = "excel-tab" if path.suffix == ".tsv" else "excel"
    reader = csv.reader(io.StringIO(read_text(path), newline=""), dialect, strict=True)
    header = [name.strip() for name in next(reader, [])]
    if not header or len(set(header)) < len(header):
        raise ValueError(f"{path}, line 1: expected a header of different column names, got {header}")
    try:
        for fields in reader:
            if len(fields) != len(header):
                raise ValueError(
                    f"{path}, line {reader.line_num}: {len(fields)} fields, but the header has {len(header)} "
                    f"({', '.join(header)}); captions with the separator in them need double quotes"
                )
            yield f"{path.name}:{reader.line_num}", dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: not valid CSV ({error})") from None


def captions_of(value: object, where: str) -> list[str]:
    """The captions in a cell: a string, a list of strings, or a JSON list of strings in a string."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            return [value]
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and all(isinstance(caption, str) for caption in value):
        return value
    raise ValueError(f"{where}: expected a caption or a list of captions, got {value!r}")


def weights_of(value: object, count: int, where: str) -> list[float]:
    """The weights in a cell: a number, a list of numbers, or either of them in a string; one for each of `count`."""
    try:
        numbers = json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError:
        numbers = None
    numbers = numbers if isinstance(numbers, list) else [numbers]
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= 1:
            raise ValueError(f"{where}: expected a number from 0 to 1 for each caption, got {value!r}")
    if len(numbers) != count:
        raise ValueError(f"{where}: {len(numbers)} weights for {count} captions; expected one for each")
    return [float(number) for number in numbers]


def ids_of(value: object, count: int, where: str) -> list[str]:
    """The caption ids in a cell: an id, a list of ids, or a JSON list in a string; one for each of `count` captions."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        with suppress(json.JSONDecodeError):
            value = json.loads(value)
    ids = value if isinstance(value, list) else [value]
    if len(ids) != count or not all(isinstance(one, str | int) and str(one) for one in ids):
        raise ValueError(f"{where}: expected an id for each of {count} captions, got {value!r}")
    return [str(one) for one in ids]


def _without_idle_weights(rows: datasets.Dataset) -> datasets.Dataset:
    """Without the column of weights where all of them are 1: such a split is, hash and all, one without weights."""
    if "caption_weights" not in rows.column_names:  # an empty split
        return rows
    weights = rows.select_columns(["caption_weights"]).with_format("arrow")[:]["caption_weights"]
    return rows.remove_columns("caption_weights") if pc.all(pc.equal(pc.list_flatten(weights), 1)).as_py() else rows


def _row_weights(values: dict, count: int, where: str) -> list[float]:
    """The weights of a row's captions; 1 where it has none."""
    column = next((name for name in WEIGHT_COLUMNS if name in values), None)
    return [1.0] * count if column is None else weights_of(values[column], count, f"{where}, column {column!r}")


class FolderImages(CaptionedImages):
    def __init__(self, data: FolderData):
        self.root = existing_root(data.root)
        files = {split: given_path(file, self.root) for split, file in (data.split_files or {}).items()}
        are_tables = {file.suffix in TABLE_SUFFIXES for file in files.values()}
        if len(are_tables) > 1:
            raise ValueError("data.split_files: either lists of photo names or caption tables, not some of each")
        self.split_tables = files if are_tables == {True} else {}
        self.split_lists = files if are_tables == {False} else {}
        self.table = None if self.split_tables else self._find_table(data)
        super().__init__(data)

    def _find_table(self, data: FolderData) -> Path:
        table = given_path(data.captions, self.root) if data.captions else first_existing(self.root, TABLES)
        if table is None:
            raise ValueError(f"{self.root}: none of {', '.join(TABLES)} is there; name the table with data.captions")
        return table

    def depends_on(self) -> list[Path]:
        return [*self.split_tables.values(), *self.split_lists.values(), *([self.table] if self.table else [])]

    def load(self) -> dict[str, datasets.Dataset]:
        return {name: _without_idle_weights(rows) for name, rows in super().load().items()}

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=WEIGHTED_ROW_FEATURES)

    def split_rows(self) -> dict[str, list[dict]]:
        if self.split_tables:
            return {split: self._read_photos(file, split)[split] for split, file in self.split_tables.items()}
        return self._read_photos(self.table, None)

    def _read_photos(self, table: Path, table_split: str | None) -> dict[str, list[dict]]:
        """Rows by split, photos in the order of their first row in the table."""
        photos: dict[str, dict] = {}
        splits: dict[str, str] = {}
        columns = None
        for where, values in read_table(table):
            image_column, caption_columns, split_column = columns = columns or self._columns(values, table)
            name = values.get(image_column)
            if not isinstance(name, str) or not name.strip():
                raise ValueError(f"{where}: column {image_column!r} names no photo")
            path, image_id = self._locate(name.strip())
            if all(column in values for column in ID_COLUMNS) and not (image_id := str(values["image_id"])).strip():
                raise ValueError(f"{where}: column 'image_id' is empty")
            if table_split is None and split_column is not None:
                split = split_name(values.get(split_column), f"{where}, column {split_column!r}")
                if splits.setdefault(image_id, split) != split:
                    raise ValueError(
                        f"{where}: photo {image_id} is in split {split}, but was in {splits[image_id]} before"
                    )
            row = photos.setdefault(image_id, photo_row(path, image_id, [], []) | {"caption_weights": []})
            if row["image"]["path"] != path:
                raise ValueError(f"{where}: photo {image_id} is {path}, but was {row['image']['path']} before")
            captions, caption_ids = self._row_captions(values, caption_columns, where)
            row["captions"] += [caption.strip() for caption in captions]
            row["caption_ids"] += caption_ids
            row["caption_weights"] += _row_weights(values, len(captions), where)
        if not photos:
            raise ValueError(f"{table}: the table has no rows")
        if table_split is not None:
            return {table_split: list(photos.values())}
        return self._by_split(photos, splits)

    def _by_split(self, photos: dict[str, dict], splits: dict[str, str]) -> dict[str, list[dict]]:
        if self.split_lists:
            listed = read_split_files(self.split_lists)
            splits = {self._locate(name)[1]: split for name, split in listed.items()}
            if unknown := [name for name in splits if name not in photos]:
                raise ValueError(f"{self.table}: no row for {len(unknown)} photos of data.split_files: {unknown[:20]}")
            if unused := len(photos) - len(splits):
                self.notes.append(f"{self.table.name}: {unused} photos are in no split file")
        elif not splits:
            shares = self.data.split_seed, self.data.val_fraction, self.data.test_fraction
            splits = {image_id: hash_split(image_id, *shares) for image_id in photos}
        rows: dict[str, list[dict]] = {}
        for image_id, row in photos.items():
            if image_id in splits:
                rows.setdefault(splits[image_id], []).append(row)
        return rows

    def _columns(self, values: dict, table: Path) -> tuple[str, list[str], str | None]:
        """Image column, caption columns and split column, as the recipe names them or by their usual names."""
        image = self.data.image_column or next((name for name in IMAGE_COLUMNS if name in values), None)
        captions = self.data.caption_columns or [name for name in CAPTION_COLUMNS if name in values][:1]
        if not captions:  # caption_1, caption_2, ...
            others = {*WEIGHT_COLUMNS, *ID_COLUMNS}
            captions = [name for name in values if name.lower().startswith("caption") and name not in others]
        split = self.data.split_column or ("split" if "split" in values and not self.split_lists else None)
        needed = [("image_column", image), *(("caption_columns", caption) for caption in captions or [None])]
        for key, column in [*needed, *([("split_column", split)] if split else [])]:
            if column not in values:
                wanted = f"{column!r} (data.{key})" if column else f"with a usual name for data.{key}"
                raise ValueError(f"{table}: no column {wanted}; the columns are {', '.join(values)}")
        return image, captions, split

    def _row_captions(self, values: dict, columns: list[str], where: str) -> tuple[list[str], list[str]]:
        """Captions and their ids; of several columns the empty ones only mean that there are fewer captions."""
        captions, places = [], []
        for column in columns:
            value = values.get(column)
            if len(columns) > 1 and (value is None or value == ""):
                continue
            found = captions_of(value, f"{where}, column {column!r}")
            place = where if len(columns) == 1 else f"{where}:{column}"
            captions += found
            places += [place] if len(found) == 1 else [f"{place}:{number}" for number in range(len(found))]
        if all(column in values for column in ID_COLUMNS):
            return captions, ids_of(values["caption_ids"], len(captions), f"{where}, column 'caption_ids'")
        return captions, places

    def _locate(self, name: str) -> tuple[str, str]:
        """Photo file and photo id: the path below the root, so that the id is the same on every machine."""
        path = os.path.normpath(self.root / name)
        return path, Path(path).relative_to(self.root).as_posix() if Path(path).is_relative_to(self.root) else name
