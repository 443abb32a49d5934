"""Tars of WebDataset and img2dataset, read where they are: an index says where in which tar every photo is.

So a photo is read like one in a file, in any order, and exact resuming, hashes, noise, marks and the audit work as for
every source. `formats/tar_samples.py` says what a sample is, and `formats/file_list.py` which tars there are and to
which split each belongs. Samples with the same photo and the same id are one photo with several captions.

A name is a photo's id if its `.json` has none, and img2dataset gives names that are distinct within a data set. If
several tars use one name for different photos, as those of two data sets do, ids begin with the tar's name.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clip_itm.data.configuration import WebDatasetData
from clip_itm.data.formats.file_list import ListedFile, find_files, splits_of
from clip_itm.data.formats.grouped import AT_ONCE, one_row_per_image, repeated, string_hashes
from clip_itm.data.formats.splits import hash_split, require_filled
from clip_itm.data.formats.tar_index import TarIndex
from clip_itm.data.formats.tar_samples import TarIndexer, TarSamples
from clip_itm.data.remote import is_remote, use_cache
from clip_itm.data.rows import SPLIT_NAMES, WEIGHTED_ROW_FEATURES, Split
from clip_itm.data.skipped import shown
from clip_itm.data.sources.builder import CaptionedTables, without_idle_weights
from clip_itm.data.tar_members import tar_member
from clip_itm.visible import counted

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.lz4")


def load(data: WebDatasetData) -> dict[str, Split]:
    """The splits of the tars; ValueError for tars that are not there, compressed, cut or damaged."""
    if is_remote(data.root):
        use_cache(data.cache_folder / "remote", int(data.remote_cache_gb * 1e9))
    return TarTables(data).load()


def _tars(root: str) -> list[ListedFile]:
    """The tars that `root` names; ValueError for compressed ones, in which nothing can be found."""
    files = find_files(root, (".tar", *COMPRESSED))
    if packed := [file.label for file in files if file.path.lower().endswith(COMPRESSED)]:
        raise ValueError(
            f"{root}: {counted(len(packed), 'tar is', 'tars are')} compressed ({shown(packed)}), and such a tar "
            "has to be read from its "
            "beginning for every photo; unpack them (gunzip *.tar.gz, zstd -d *.tar.zst), which needs no more room: "
            "photos are compressed already"
        )
    return files


class TarTables(CaptionedTables):
    """The rows of tars."""

    def __init__(self, data: WebDatasetData):
        self.tars = _tars(data.root)
        self.split_of_tar = splits_of(self.tars, data.splits, data.root)
        super().__init__(data)

    def stamps(self) -> list[str]:
        """Every tar with its size and time of change."""
        return ["\n".join(map(str, tar)) for tar in self.tars]

    def load(self) -> dict[str, Split]:
        """The splits, with weights only where some weight is not 1."""
        return {name: replace(split, rows=without_idle_weights(split.rows)) for name, split in super().load().items()}

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=WEIGHTED_ROW_FEATURES)

    def split_tables(self) -> dict[str, Iterator[pa.Table]]:
        """Tables of rows; ValueError for what is wrong in the tars, unless `data.skip_broken` leaves it out."""
        indexer = TarIndexer(self.data.caption_key, self.data.id_key)
        index = TarIndex(self.data.cache_folder / "tars", self.tars, indexer)
        index.build()
        samples = list(index.samples())
        self._tell(samples)
        tables = self._distinct([found.table for found in samples])
        splits = self._splits([table["image_id"] for table in tables])
        several = repeated(np.concatenate([string_hashes(table["image_id"]) for table in tables])).any()
        return {
            name: self._rows(tables, [split == number for split in splits], bool(several))
            for number, name in enumerate(SPLIT_NAMES)
            if any((split == number).any() for split in splits)
        }

    def _tell(self, samples: list[TarSamples]) -> None:
        if problems := [problem for found in samples for problem in found.problems]:
            told = f"{self.data.root}: {len(problems)} things are wrong in the tars:\n  " + shown(problems, "\n  ")
            if not self.data.skip_broken:
                raise ValueError(f"{told}\nMend them, or set data.skip_broken: true to go on without them.")
            self.notes.append(f"{len(problems)} things are wrong in the tars, and left out: {shown(problems)}")
        counts: Counter[str] = Counter()
        first: dict[str, str] = {}
        for found in samples:
            for what, (count, name) in found.left_out.items():
                counts[what] += count
                first.setdefault(what, name)
        self.notes += [f"left out: {count:,} {what} (the first: {first[what]})" for what, count in counts.items()]

    def _distinct(self, tables: list[pa.Table]) -> list[pa.Table]:
        """The tables, with the tar in the ids that are names if one name stands for different photos."""
        found = _two_photos(tables, is_named=True)
        if found is not None:
            self.notes.append(f"ids begin with the tar of a photo, because {found}")
            tables = [_with_tar(table, tar.label) for table, tar in zip(tables, self.tars, strict=True)]
        if found := _two_photos(tables, is_named=False):
            key = self.data.id_key or "uid or image_id"
            raise ValueError(
                f"{self.data.root}: {found}; name the key of .json that tells photos apart ({key} does not)"
            )
        return tables

    def _splits(self, ids: list[pa.ChunkedArray]) -> list[np.ndarray]:
        """The number of the split of every row, an array for each tar."""
        numbers = {name: number for number, name in enumerate(SPLIT_NAMES)}
        if any(self.split_of_tar):
            if idle := [tar.label for tar, split in zip(self.tars, self.split_of_tar, strict=True) if split is None]:
                self.notes.append(f"{counted(len(idle), 'tar is', 'tars are')} in no split: {shown(idle)}")
            own = zip(ids, self.split_of_tar, strict=True)
            return [np.full(len(column), numbers.get(split, len(numbers))) for column, split in own]
        data, found = self.data, []
        for column in ids:
            own = (
                hash_split(one, data.split_seed, data.val_fraction, data.test_fraction) for one in column.to_pylist()
            )
            found.append(np.array([numbers[name] for name in own], dtype=np.int64))
        there = set(np.unique(np.concatenate(found)).tolist())
        require_filled([SPLIT_NAMES[number] for number in there], sum(map(len, ids)), data)
        return found

    def _rows(self, tables: list[pa.Table], masks: list[np.ndarray], several: bool) -> Iterator[pa.Table]:
        columns = list(WEIGHTED_ROW_FEATURES)
        parts = (table.filter(pa.array(mask)).select(columns) for table, mask in zip(tables, masks, strict=True))
        if not several:
            yield from (part for part in parts if len(part))
            return
        rows = one_row_per_image(pa.concat_tables(parts))
        for start in range(0, len(rows), AT_ONCE):
            yield rows.slice(start, AT_ONCE)


def _two_photos(tables: list[pa.Table], is_named: bool) -> str | None:
    """A sentence about an id that stands for two photos; None if there is none. Only ids of one kind are checked."""
    parts = [table.filter(pc.equal(table["is_named"], is_named)) for table in tables]
    hashes = [string_hashes(part["image_id"]) for part in parts]
    again = repeated(np.concatenate(hashes))
    seen: dict[str, tuple[str, str]] = {}
    ends = np.cumsum([0, *map(len, hashes)])
    for part, (start, end) in zip(parts, pairwise(ends), strict=True):
        for row in np.flatnonzero(again[start:end]).tolist():
            image_id, path = part["image_id"][row].as_py(), part["image"][row].as_py()["path"]
            member = tar_member(path)
            identity, first = seen.setdefault(image_id, (member.identity, path))
            if identity != member.identity:
                return f"the id {image_id!r} stands for two photos, {_place(first)} and {_place(path)}"
    return None


def _place(path: str) -> str:
    member = tar_member(path)
    return f"{member.name} in {member.tar}"


def _with_tar(table: pa.Table, label: str) -> pa.Table:
    """The table with `label`, without its suffix, put before ids that are names, and before their captions' ids."""
    prefix = label[: -len(".tar")]
    named = table["is_named"].combine_chunks()
    ids = table["image_id"].combine_chunks()
    table = table.set_column(
        table.column_names.index("image_id"),
        table.schema.field("image_id"),
        pc.if_else(named, pc.binary_join_element_wise(prefix, ids, "/"), ids),
    )
    lists = table["caption_ids"].combine_chunks()
    of_named = named.take(pc.list_parent_indices(lists))
    values = pc.list_flatten(lists)
    values = pc.if_else(of_named, pc.binary_join_element_wise(prefix, values, "/"), values)
    lists = pa.ListArray.from_arrays(lists.offsets, values) if lists.offset == 0 else lists
    return table.set_column(table.column_names.index("caption_ids"), table.schema.field("caption_ids"), lists)
