"""The one builder under every source that is read from files or drawn: rows in, memory-mapped Arrow out.

The builder is instantiated directly (`datasets` no longer runs loading scripts). Only text is cached: an image is
stored as its path. The key of the cache covers the values of the section, the content of everything that `depends_on`
names and the code that reads it: an edited caption file never gives stale rows. Cached rows are compared with their
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
from datasets.exceptions import DatasetGenerationError

from clip_itm.checksums import CHECKSUMS, add_checksums, damages
from clip_itm.data.configuration import DataSection
from clip_itm.data.formats.name_spelling import found_on_disk
from clip_itm.data.rows import ROW_FEATURES, SPLIT_NAMES, Split

Rows = Iterable[dict]


class CaptionedImages(datasets.GeneratorBasedBuilder, ABC):
    """The base of most sources: a subclass has `split_rows`, and `depends_on` if it reads files.

    `load()` gives the splits, keyed train, val, test. A reader appends its remarks on the files ("5 lines without an
    image") to `notes`; they are cached too, in `Dataset.info.description`.
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

    @abstractmethod
    def split_rows(self) -> dict[str, Rows]:
        """The rows of every split, by split name (train, val, test)."""

    def depends_on(self) -> list[Path]:
        """Files whose content, and folders whose list of names, decide the rows."""
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
            kept = Path(self.cache_dir)  # where another process may be writing the same checksums
            add_checksums(kept, [path.name for path in (*kept.glob("[!.]*.arrow"), *kept.glob("dataset_info.json"))])
        return {
            name: Split(name, found_on_disk(self._read(name)), missing_is_normal=self.missing_is_normal)
            for name in SPLIT_NAMES
            if name in self.info.splits
        }

    def _read(self, split: str) -> datasets.Dataset:
        if self.info.splits[split].num_examples == 0:  # the Arrow reader refuses to read nothing
            return datasets.Dataset.from_dict({name: [] for name in ROW_FEATURES}, features=ROW_FEATURES)
        return self.as_dataset(split=split)

    def _key(self) -> str:
        values = self.data.model_dump(exclude=set(DataSection.model_fields))
        values["skip_broken"] = self.data.skip_broken  # an unusable image or caption is then a gap instead of an error
        digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
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

    def _split_generators(self, dl_manager) -> list[datasets.SplitGenerator]:
        splits = self.split_rows()
        return [datasets.SplitGenerator(name=name, gen_kwargs={"rows": rows}) for name, rows in splits.items()]

    def _generate_examples(self, rows: Rows):
        yield from enumerate(rows)
        # `notes` may grow while rows are read; the description is written to disk after the last split
        self.info.description = "\n".join(self.notes)


def _remove_damaged(kept: Path) -> None:
    """Delete cached rows that are no longer what was prepared, so that they are prepared again."""
    try:
        found = damages(kept)
    except ValueError as error:
        found = [str(error)]
    if found:
        warnings.warn(f"{found[0]}: the rows of this data set are prepared again", stacklevel=3)
        shutil.rmtree(kept)
