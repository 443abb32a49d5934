"""The builders of every source that is read from files or drawn: rows or tables in, memory-mapped Arrow out.

They are instantiated directly (`datasets` no longer runs loading scripts). Only text is cached: an image is stored as
its path. The key of the cache covers the values of the section, the content of everything that `depends_on` names, the
`stamps` and the code that reads it: an edited caption file never gives stale rows. Cached rows are compared with their
checksums, and prepared again if they are damaged.
"""

import hashlib
import json
import os
import shutil
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.compute as pc
from datasets.exceptions import DatasetGenerationError

from clip_itm.checksums import CHECKSUMS, add_checksums, damages, read_checksums
from clip_itm.data.configuration import DataSection
from clip_itm.data.formats.name_spelling import found_on_disk
from clip_itm.data.rows import ROW_FEATURES, SPLIT_NAMES, Split

Rows = Iterable[dict]
REREAD = 2**33  # bytes of rows that are compared at every start; of more, mostly photos, only the sizes are compared


class Prepared(datasets.DatasetBuilder, ABC):
    """What the two builders share: `load()` gives the splits, keyed train, val, test.

    A reader appends its remarks on the files ("5 lines without an image") to `notes`; they are cached too, in
    `Dataset.info.description`.
    """

    # True if the annotations are known to name images that nobody has: they are left out instead of being an error
    missing_is_normal = False

    def __init__(self, data: DataSection):
        self.data = data
        self.notes: list[str] = []
        folder, key = data.cache_folder / "rows", self._key()
        for kept in folder.glob(f"{data.source}/*/*/{key}"):
            _remove_damaged(kept)
        super().__init__(cache_dir=str(folder), dataset_name=data.source, hash=key)

    def depends_on(self) -> list[Path]:
        """Files whose content, and folders whose list of names, decide the rows."""
        return []

    def stamps(self) -> list[str]:
        """Whatever else decides the rows, such as size and time of files too large to be read at every start."""
        return []

    def load(self) -> dict[str, Split]:
        """The splits from the cache, or prepared now; raises what the reader raises."""
        try:
            self.download_and_prepare(verification_mode="no_checks")
        except DatasetGenerationError as error:
            # the reader's own error names the file and the row; the wrapper only says that something failed
            if isinstance(error.__cause__, ValueError | OSError):
                raise error.__cause__ from None
            raise
        if not (Path(self.cache_dir) / CHECKSUMS).exists():
            kept = Path(self.cache_dir)  # another process may be writing the same checksums there
            add_checksums(kept, [path.name for path in (*kept.glob("[!.]*.arrow"), *kept.glob("dataset_info.json"))])
        return {
            name: Split(name, self._spelled(self._read(name)), missing_is_normal=self.missing_is_normal)
            for name in SPLIT_NAMES
            if name in self.info.splits
        }

    def _spelled(self, rows: datasets.Dataset) -> datasets.Dataset:
        return rows

    def _read(self, split: str) -> datasets.Dataset:
        if self.info.splits[split].num_examples == 0:  # the Arrow reader refuses to read nothing
            return datasets.Dataset.from_dict({name: [] for name in ROW_FEATURES}, features=ROW_FEATURES)
        return self.as_dataset(split=split)

    def _key(self) -> str:
        values = self.data.model_dump(exclude=set(DataSection.model_fields))
        values["skip_broken"] = self.data.skip_broken  # an unusable image or caption is then a gap instead of an error
        digest = hashlib.sha256(json.dumps([values, self.stamps()], sort_keys=True).encode())
        code = {Path(sys.modules[type(self).__module__].__file__), *Path(__file__).parents[1].rglob("*.py")}
        for path in [*sorted(code), *self.depends_on()]:
            digest.update(f"\n{path.absolute()}\n".encode())
            if path.is_dir():
                digest.update("\0".join(sorted(os.listdir(path))).encode(errors="surrogateescape"))
            elif path.is_file():
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()[:32]

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=ROW_FEATURES)


class CaptionedImages(Prepared, datasets.GeneratorBasedBuilder):
    """The base of most sources: a subclass has `split_rows`, and `depends_on` if it reads files."""

    @abstractmethod
    def split_rows(self) -> dict[str, Rows]:
        """The rows of every split, by split name (train, val, test)."""

    def _spelled(self, rows: datasets.Dataset) -> datasets.Dataset:
        return found_on_disk(rows)

    def _split_generators(self, dl_manager) -> list[datasets.SplitGenerator]:
        splits = self.split_rows()
        return [datasets.SplitGenerator(name=name, gen_kwargs={"rows": rows}) for name, rows in splits.items()]

    def _generate_examples(self, rows: Rows):
        yield from enumerate(rows)
        # `notes` may grow while rows are read; the description is written to disk after the last split
        self.info.description = "\n".join(self.notes)


class CaptionedTables(Prepared, datasets.ArrowBasedBuilder):
    """The base of sources whose rows come as Arrow tables, a part of a split at a time: a subclass has `split_tables`.

    For data too large for a Python object per row.
    """

    @abstractmethod
    def split_tables(self) -> dict[str, Iterable[pa.Table]]:
        """The tables of every split, by split name (train, val, test), in the schema of `_info`."""

    def _split_generators(self, dl_manager) -> list[datasets.SplitGenerator]:
        splits = self.split_tables()
        return [datasets.SplitGenerator(name=name, gen_kwargs={"tables": tables}) for name, tables in splits.items()]

    def _generate_tables(self, tables: Iterable[pa.Table]):
        yield from enumerate(tables)
        self.info.description = "\n".join(self.notes)


def without_idle_weights(rows: datasets.Dataset) -> datasets.Dataset:
    """The rows without weights that are all 1: such a split equals, hash included, one without weights."""
    if "caption_weights" not in rows.column_names:  # an empty split
        return rows
    weights = rows.select_columns(["caption_weights"]).with_format("arrow")[:]["caption_weights"]
    return rows.remove_columns("caption_weights") if pc.all(pc.equal(pc.list_flatten(weights), 1)).as_py() else rows


def _remove_damaged(kept: Path) -> None:
    """Delete cached rows that are no longer what was prepared, so that they are prepared again."""
    try:
        is_large = sum(path.stat().st_size for path in kept.iterdir()) > REREAD
        found = _missing_or_cut(kept) if is_large else damages(kept)
    except ValueError as error:
        found = [str(error)]
    if found:
        warnings.warn(f"{found[0]}: the rows of this data set are prepared again", stacklevel=3)
        shutil.rmtree(kept)


def _missing_or_cut(kept: Path) -> list[str]:
    """A sentence for each file that is missing, or has another size than when it was written."""
    files = (read_checksums(kept) or {"files": {}})["files"]
    sizes = {path.name: path.stat().st_size for path in kept.iterdir()}
    return [f"{kept / name} was cut, or is gone" for name, entry in files.items() if sizes.get(name) != entry["bytes"]]
