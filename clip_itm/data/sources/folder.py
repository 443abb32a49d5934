"""Users' own data: an image folder and a table (CSV, TSV, JSONL, JSON) of an image column and one or more captions.

The captions of an image may be in a list (in JSON, or written into a cell: `formats/cells.py`), in several columns, or
in several rows. The split comes from a column, from `split_files` (lists of image names, or one caption table per
split), or from a seeded hash of the image's path, so that adding images never moves old ones to another split.

A column `caption_weights` (or `caption_weight`) says how much each caption of the row counts in training, from 0 to 1.
The columns `image_id` and `caption_ids`, given together, keep the ids that image and captions have elsewhere; without
them, ids are the path below the root and the row in the table: inserting a line renames the captions below it, which
changes the split's hash as any edit does.
"""

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import datasets

from clip_itm.data.configuration import FolderData
from clip_itm.data.formats.annotation_files import BrokenRow, existing_root, first_existing, given_path, refuse_url
from clip_itm.data.formats.cells import captions_of, ids_of, weights_of
from clip_itm.data.formats.name_spelling import URL, are_two_images, canonical, check_name
from clip_itm.data.formats.splits import hashed_splits, read_split_files, split_name
from clip_itm.data.formats.tables import (
    CAPTION_COLUMNS,
    IMAGE_COLUMNS,
    TABLES,
    URL_COLUMNS,
    WEIGHT_COLUMNS,
    find_column,
    is_table,
    read_table,
)
from clip_itm.data.formats.url_tables import WEB, refuse_url_table
from clip_itm.data.rows import WEIGHTED_ROW_FEATURES, Split, image_row
from clip_itm.data.skipped import shown
from clip_itm.data.sources.builder import CaptionedImages, without_idle_weights
from clip_itm.visible import counted

ID_COLUMNS = ("image_id", "caption_ids")
NO_CAPTIONS = re.compile(
    r"captions?[ _-]?(?:ids?|num(?:ber)?|no|index|count|score|length|weights?|lang(?:uage)?)", re.I
)


class Columns(NamedTuple):
    """The names of a table's columns; a row of JSON may lack `weights` and `ids`."""

    image: str
    captions: list[str]
    split: str | None
    weights: str
    ids: list[str]  # of the image, of the captions


def load(data: FolderData) -> dict[str, Split]:
    """An image folder and its table; ValueError if the table or a column is missing or a row cannot be used."""
    return FolderImages(data).load()


class FolderImages(CaptionedImages):
    """The rows of a folder and its table, or its tables by split."""

    def __init__(self, data: FolderData):
        self.root = existing_root(data.root)
        files = {split: given_path(file, self.root) for split, file in (data.split_files or {}).items()}
        are_tables = {is_table(file) for file in files.values()}
        if len(are_tables) > 1:
            raise ValueError("data.split_files: either lists of photo names or caption tables, not some of each")
        self.split_tables = files if are_tables == {True} else {}
        self.split_lists = files if are_tables == {False} else {}
        self.table = None if self.split_tables else self._find_table(data)
        self.broken: list[BrokenRow] = []
        super().__init__(data)

    def _find_table(self, data: FolderData) -> Path:
        if data.captions:
            return given_path(data.captions, self.root)
        table = first_existing(self.root, TABLES)
        if table is None:  # CAPTIONS.CSV
            names = {name.lower(): name for name in os.listdir(self.root)}
            table = next((self.root / names[name] for name in TABLES if name in names), None)
        if table is None:
            raise ValueError(f"{self.root}: none of {', '.join(TABLES)} is there; name the table with data.captions")
        return table

    def depends_on(self) -> list[Path]:
        """The tables, and the lists of image names."""
        return [*self.split_tables.values(), *self.split_lists.values(), *([self.table] if self.table else [])]

    def load(self) -> dict[str, Split]:
        """The splits, with weights only where some weight is not 1."""
        return {name: replace(split, rows=without_idle_weights(split.rows)) for name, split in super().load().items()}

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=WEIGHTED_ROW_FEATURES)

    def split_rows(self) -> dict[str, list[dict]]:
        """One row per image; ValueError, naming the row, for whatever cannot be used."""
        if self.split_tables:
            return {split: self._read_images(file, split)[split] for split, file in self.split_tables.items()}
        return self._read_images(self.table, None)

    def _read_images(self, table: Path, table_split: str | None) -> dict[str, list[dict]]:
        """Rows by split, images in the order of their first row in the table."""
        images: dict[str, dict] = {}
        splits: dict[str, str] = {}
        columns = None
        for where, values in read_table(table):
            columns = columns or self._columns(values, table)
            row = self._image(values, columns, where, images)
            captions, caption_ids = self._row_captions(values, columns, where)
            if table_split is None and columns.split is not None:
                split = split_name(values.get(columns.split), f"{where}, column {columns.split!r}")
                if splits.setdefault(row["image_id"], split) != split:
                    was = splits[row["image_id"]]
                    raise ValueError(f"{where}: photo {row['image_id']} is in split {split}, but was in {was} before")
            images[row["image_id"]] = row
            row["captions"] += [caption.strip() for caption in captions]
            row["caption_ids"] += caption_ids
            weights, count = values.get(columns.weights, [1.0] * len(captions)), len(captions)
            row["caption_weights"] += weights_of(weights, count, f"{where}, column {columns.weights!r}")
        if columns is None:
            raise ValueError(f"{table}: the table has no rows")
        if self.broken and not self.data.skip_broken:
            raise _all_of(self.broken)
        if table_split is not None:
            return {table_split: list(images.values())}
        return self._by_split(images, splits)

    def _image(self, values: dict, columns: Columns, where: str, images: dict[str, dict]) -> dict:
        """The row of an image, one of `images` if it was named before."""
        try:
            name = check_name(values.get(columns.image), f"{where}: column {columns.image!r}")
        except BrokenRow as error:
            self.broken.append(error)
            return image_row("", where, [], []) | {"image": None, "caption_weights": []}
        path, image_id = self._locate(name)
        own_id = all(column in values for column in columns.ids)
        if own_id and (values[columns.ids[0]] is None or not (image_id := str(values[columns.ids[0]])).strip()):
            raise ValueError(f"{where}: column {columns.ids[0]!r} is empty")
        row = images.get(image_id)
        if row is None:
            return image_row(path, image_id, [], []) | {"caption_weights": []}
        was = row["image"]["path"]
        if was != path and (own_id or are_two_images(was, path)):
            raise ValueError(f"{where}: photo {image_id} is {path}, but was {was} before")
        return row

    def _by_split(self, images: dict[str, dict], splits: dict[str, str]) -> dict[str, list[dict]]:
        if self.split_lists:
            listed = read_split_files(self.split_lists)
            splits = {self._locate(name)[1]: split for name, split in listed.items()}
            if unknown := [name for name in splits if name not in images]:
                raise ValueError(
                    f"{self.table}: no row for {counted(len(unknown), 'photo')} of data.split_files: {unknown[:20]}"
                )
            if unused := len(images) - len(splits):
                self.notes.append(f"{self.table.name}: {counted(unused, 'photo is', 'photos are')} in no split file")
        elif not splits:
            splits = hashed_splits(images, self.data)
        rows: dict[str, list[dict]] = {}
        for image_id, row in images.items():
            if image_id in splits:
                rows.setdefault(splits[image_id], []).append(row)
        return rows

    def _columns(self, values: dict, table: Path) -> Columns:
        """The columns as the recipe names them or by their usual names, in upper or lower case."""
        given = self.data
        image = find_column(values, given.image_column) if given.image_column else find_column(values, *IMAGE_COLUMNS)
        if given.caption_columns:
            captions = [find_column(values, name) or name for name in given.caption_columns]
        else:
            captions = [column for column in [find_column(values, *CAPTION_COLUMNS)] if column is not None]
            if not captions:  # caption_1, caption_2, ...
                captions = [n for n in values if n.lower().startswith("caption") and not NO_CAPTIONS.fullmatch(n)]
        split = find_column(values, given.split_column or "split")
        if split is None or (self.split_lists and not given.split_column):
            split = given.split_column
        needed = [("image_column", image or given.image_column)]
        needed += [("caption_columns", caption) for caption in captions or [None]]
        for key, column in [*needed, *([("split_column", split)] if split else [])]:
            if column not in values:
                wanted = f"{column!r} (data.{key})" if column else f"with a usual name for data.{key}"
                urls = find_column(values, *URL_COLUMNS) if key == "image_column" and column is None else None
                if urls is not None and str(values[urls]).startswith(WEB):
                    refuse_url_table(str(table), list(values), urls)
                if urls is not None and URL.match(str(values[urls])):
                    refuse_url(str(values[urls]), f"{table}, column {urls!r}")
                raise ValueError(f"{table}: no column {wanted}; the columns are {', '.join(values)}")
        weights = find_column(values, *WEIGHT_COLUMNS) or WEIGHT_COLUMNS[0]
        return Columns(image, captions, split, weights, [find_column(values, name) or name for name in ID_COLUMNS])

    def _locate(self, name: str) -> tuple[str, str]:
        """Image file and image id: the path below the root, so that the id is the same on every machine."""
        path = os.path.normpath(os.path.join(self.root, name))
        below = os.path.join(self.root, "")
        image_id = path.removeprefix(below) if path.startswith(below) else name
        spelled = canonical(image_id)
        return path, image_id if spelled == image_id else os.path.normpath(spelled)

    def _row_captions(self, values: dict, columns: Columns, where: str) -> tuple[list[str], list[str]]:
        """Captions and their ids; an empty one of several columns only means that there are fewer captions."""
        captions, positions = [], []
        several = len(columns.captions) > 1
        for column in columns.captions:
            value = values.get(column)
            if several and (value is None or value == ""):
                continue
            try:
                found = captions_of(value, f"{where}, column {column!r}")
            except BrokenRow as error:
                self.broken.append(error)
                found = [""]
            place = f"{where}:{column}" if several else where
            captions += found
            positions += [place] if len(found) == 1 else [f"{place}:{index}" for index in range(len(found))]
        if all(column in values for column in columns.ids):
            return captions, ids_of(values[columns.ids[1]], len(captions), f"{where}, column {columns.ids[1]!r}")
        return captions, positions


def _all_of(broken: list[BrokenRow]) -> BrokenRow:
    if len(broken) == 1:
        return broken[0]
    return BrokenRow(
        f"{counted(len(broken), 'row cannot', 'rows cannot')} be used:\n  "
        f"{shown([str(error) for error in broken], separator=chr(10) + '  ')}\n"
        "Mend them, or set data.skip_broken: true to go on without them."
    )
