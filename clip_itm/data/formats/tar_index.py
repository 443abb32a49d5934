"""What is in many tars, kept as a file for each: every tar is read once, from its beginning to its end.

An entry is an Arrow stream of `SAMPLE_FEATURES` followed by a seal, named after the tar's path, size and time of
change, the options and the code that reads tars: another tar, or a changed one, is another entry. Entries appear whole,
so a killed build resumes after the last finished tar, and two builds at the same time only do the work twice.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pyarrow as pa
from tqdm.auto import tqdm

from clip_itm.data.formats import tar_reader, tar_samples
from clip_itm.data.formats.file_list import ListedFile
from clip_itm.data.formats.tar_samples import SAMPLE_FEATURES, TarIndexer, TarSamples
from clip_itm.data.remote import is_remote, open_remote
from clip_itm.distributed import process_index
from clip_itm.files import clear_temporary, temporary_name
from clip_itm.reading import reading
from clip_itm.seal import is_whole, seal

BUFFER = 2**20  # bytes read at once
ABOUT = b"clip_itm"  # key of the schema's metadata for problems and for what was left out


class TarIndex:
    """The entries of `tars` in `folder`; missing ones are made by a thread per core, with a progress bar."""

    def __init__(self, folder: Path, tars: Sequence[ListedFile], indexer: TarIndexer):
        self.folder, self.tars, self.indexer = folder, tars, indexer
        code = b"".join(Path(module.__file__).read_bytes() for module in (tar_reader, tar_samples))
        self._options = f"{hashlib.sha256(code).hexdigest()} {indexer.caption_key} {indexer.id_key}"

    def build(self) -> None:
        """Read the tars that have no entry yet. Raises ValueError for one that cannot be read at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        clear_temporary(self.folder)
        waiting = [tar for tar in self.tars if not _is_sound(self._entry(tar))]
        if not waiting:
            return
        total = sum(tar.size for tar in waiting)
        with (
            ThreadPoolExecutor(os.cpu_count()) as pool,
            tqdm(
                desc=f"indexing {len(waiting)} tars",
                total=total,
                unit="B",
                unit_scale=True,
                delay=1,
                disable=process_index() != 0,
            ) as bar,
        ):
            try:
                for tar in pool.map(self._index, waiting):
                    bar.update(tar.size)
            except BaseException:  # an error or Ctrl-C: do not read the rest before saying so
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def samples(self) -> Iterator[TarSamples]:
        """What is in each tar, mapped from its entry."""
        for tar in self.tars:
            with pa.memory_map(str(self._entry(tar))) as file:
                table = pa.ipc.open_stream(file).read_all()
            about = json.loads(table.schema.metadata[ABOUT])
            yield TarSamples(
                table, about["problems"], {name: tuple(facts) for name, facts in about["left_out"].items()}
            )

    def _entry(self, tar: ListedFile) -> Path:
        name = json.dumps([tar.path, tar.label, tar.size, tar.stamp, self._options])
        return self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.arrow"

    def _index(self, tar: ListedFile) -> ListedFile:
        opener = open_remote if is_remote(tar.path) else partial(open, mode="rb", buffering=BUFFER)
        with reading(tar.path, "a tar"), opener(tar.path) as file:
            found = self.indexer.read(file, tar.size, tar.path, tar.label)
        about = json.dumps({"problems": found.problems, "left_out": found.left_out})
        schema = SAMPLE_FEATURES.arrow_schema.with_metadata({ABOUT: about})
        entry = self._entry(tar)
        temporary = entry.with_name(temporary_name(entry.stem, entry.suffix))
        try:
            with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
                writer.write_table(found.table.cast(schema))
            seal(temporary)
            os.replace(temporary, entry)
        finally:
            temporary.unlink(missing_ok=True)
        return tar


def _is_sound(entry: Path) -> bool:
    return entry.is_file() and is_whole(entry) is True
