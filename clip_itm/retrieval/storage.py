"""The files of a saved index.

    index.json                      what there is, with size and checksum of every file; replaced last: the commit
    vectors-TOKEN.safetensors       [n, D] of one segment, in the type that the index stores
    embeddings-TOKEN.safetensors    [n, ...], only if they are not the vectors
    items-TOKEN.parquet             id, path, caption, and what is known of the content (see `Item`)
    thumbnails-TOKEN.safetensors    uint8 of all JPEGs in a row and their offsets, only if there are any
    deleted-TOKEN.npz               positions of deleted items
    hnsw-TOKEN.faiss                graph or lists of an approximate search
    .clip_itm.pending               names of files, during a save: those of the new index and of the old one

Every save has a token of its own. It writes its files, then index.json, then removes what was listed as pending and is
not named by index.json: the files of the former index after a commit, its own after a failure; what a killed writer
left is removed by the next one. So the old index or the new one can be read, whatever happens in between, and no file
is ever removed that no index in this folder wrote.
"""

import hashlib
import json
import re
import uuid
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import xxhash

from clip_itm.files import is_free, is_temporary, reading_arrays, replacing, require_free_name, save_arrays, write_json
from clip_itm.lock import LOCK_FILE
from clip_itm.retrieval.rows import REMEDY, Parts, Rows, read_tensors, write_tensors
from clip_itm.retrieval.segments import ITEM_COLUMNS, Segment, Selection
from clip_itm.visible import counted

INDEX_FILE = "index.json"
PENDING = ".clip_itm.pending"
FORMAT = "clip_itm search index"
VERSION = 2  # version 1 had numbers for tokens, sha256 for checksums, none that are compared while searching
OUR_FILES = re.compile(
    r"(vectors|embeddings|items|thumbnails|deleted|hnsw|ivf-pq)-(\d{4,}|[0-9a-f]{16})\.(safetensors|parquet|npz|faiss)"
)


def new_token() -> str:
    return uuid.uuid4().hex[:16]


def names_of_save(token: str) -> set[str]:
    """Every name that a save with this token may write."""
    tensors = {f"{name}-{token}.safetensors" for name in ("vectors", "embeddings", "thumbnails")}
    return tensors | {f"items-{token}.parquet", f"deleted-{token}.npz", f"hnsw-{token}.faiss", f"ivf-pq-{token}.faiss"}


def require_index_folder(folder: Path) -> None:
    """Raise ValueError unless an index can be kept here: the folder is not there or empty, or holds one."""
    if str(folder) == "-" or (folder.exists() and not folder.is_dir()):
        what = "standard output" if str(folder) == "-" else "a file"
        raise ValueError(f"{folder} is {what}; choose a folder for the index")
    require_free_name(folder, is_folder=True)
    if is_free(folder):
        return
    if (folder / INDEX_FILE).exists():
        read_index_file(folder)
        return
    names = sorted(path.name for path in folder.iterdir() if not is_temporary(path))
    own = {LOCK_FILE, PENDING, *_pending(folder)}  # read after the names: a writer announces its files first
    others = [name for name in names if name not in own]
    if others and not (folder / INDEX_FILE).exists():
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise ValueError(
            f"{folder} holds {others[0]!r}{more} and no index; choose an empty folder, or one that does not exist yet"
        )


def read_index_file(folder: Path) -> tuple[dict, str]:
    """index.json and its sha256; the values are still to be checked."""
    path = folder / INDEX_FILE
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{folder} holds no index: there is no {INDEX_FILE}; make one with clip-itm index") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None
    try:
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}")
        version = content["version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is not the {INDEX_FILE} of a search index ({error!r}); {REMEDY}") from None
    if version not in (1, VERSION):
        raise ValueError(
            f"{path} has version {version!r} of the format, this clip_itm reads version {VERSION}; index the gallery "
            f"again, or use the clip_itm that made it"
        )
    if (version == VERSION or "xxh3" in content) and content.pop("xxh3", None) != _checksum_of(content):
        raise ValueError(f"{path} is not what was saved: its checksum has changed; {REMEDY}")
    return content, hashlib.sha256(text).hexdigest()


def _checksum_of(content: dict) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())


def committed(folder: Path) -> str | None:
    """The sha256 of the folder's index.json, None if there is none."""
    path = folder / INDEX_FILE
    return sha256_of(path) if path.is_file() else None


def announce(folder: Path, names: Collection[str]) -> None:
    """List files that may have to be removed, before the first of them is written."""
    write_json(folder / PENDING, {"format": FORMAT, "files": sorted({*names, *_pending(folder)})})


def commit(folder: Path, content: dict, before: str | None) -> str:
    """Replace index.json and return its sha256. Raises ValueError if it is no longer the one of the sha256 `before`."""
    content = {"format": FORMAT, "version": VERSION, **content}
    missing = [entry["name"] for entry in named_files(content) if not (folder / entry["name"]).is_file()]
    if committed(folder) != before or missing:
        raise ValueError(f"{folder} was changed by another process since this index was loaded; load it again")
    write_json(folder / INDEX_FILE, {**content, "xxh3": _checksum_of(content)})
    return sha256_of(folder / INDEX_FILE)


def clear(folder: Path, names: Collection[str] = ()) -> None:
    """Remove files that were announced, and these, unless index.json names them. The caller holds the lock."""
    if not names and not (folder / PENDING).is_file():
        return
    named = set()
    if committed(folder) is not None:
        named = {entry["name"] for entry in named_files(read_index_file(folder)[0])}
    try:
        for name in {*_pending(folder), *names} - named:
            (folder / name).unlink(missing_ok=True)
        (folder / PENDING).unlink(missing_ok=True)
    except OSError:  # mapped by a process on a system that then refuses; the next save tries again
        pass


def _pending(folder: Path) -> set[str]:
    """The names that were announced."""
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        content = json.loads((folder / PENDING).read_bytes())
        if content["format"] == FORMAT:
            return {name for name in content["files"] if OUR_FILES.fullmatch(name)}
    return set()


def named_files(content: dict) -> list[dict]:
    """Every {name, bytes, checksum} of index.json."""
    parts = [*content["segments"], {"deleted": content["deleted"]}, content["shortlist"] or {}]
    return [entry for part in parts for entry in part.values() if isinstance(entry, dict)]


def index_files(folder: Path) -> list[Path]:
    """The files that an index consists of; others may be next to them."""
    return [folder / INDEX_FILE, *(folder / entry["name"] for entry in named_files(read_index_file(folder)[0]))]


def index_damages(folder: str | Path) -> list[str]:
    """A sentence for each file of an index that is missing or not what was saved; everything is read once."""
    folder, found = Path(folder), []
    try:
        entries = named_files(read_index_file(folder)[0])
    except (KeyError, TypeError, AttributeError) as error:
        return [damaged(folder, error)]
    except ValueError as error:
        return [str(error)]
    for entry in entries:
        try:
            if "checksums" in entry:
                for rows in open_tensors(folder, entry).values():
                    rows[:]  # compares them all
            else:
                check_file(folder, entry)
        except (ValueError, OSError) as error:
            found.append(str(error))
        except (KeyError, TypeError, AttributeError) as error:
            found.append(damaged(folder, error))
    return found


def damaged(folder: Path, error: Exception) -> str:
    return f"{folder / INDEX_FILE} is damaged ({error!r}); {REMEDY}"


def file_entry(path: Path) -> dict:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()
    return {"name": path.name, "bytes": path.stat().st_size, "xxh3": digest}


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_file(folder: Path, entry: dict) -> Path:
    """The path of a file that index.json names, whose size and content are what they were."""
    path = check_size(folder, entry)
    with path.open("rb") as file:
        check_content(file, entry)
    return path


def check_content(file: BinaryIO, entry: dict) -> None:
    """Read an open file from its beginning to its end, and raise ValueError if it is not what index.json says."""
    name, kind = ("xxh3", xxhash.xxh3_128) if "xxh3" in entry else ("sha256", "sha256")
    file.seek(0)
    if hashlib.file_digest(file, kind).hexdigest() != entry[name]:
        raise ValueError(
            f"{file.name} is not what was saved: its checksum differs from the one in {INDEX_FILE}; {REMEDY}"
        )


def check_size(folder: Path, entry: dict) -> Path:
    if not OUR_FILES.fullmatch(entry["name"]):
        raise ValueError(f"{folder / INDEX_FILE} names {entry['name']!r}, which is not a file of an index; {REMEDY}")
    path = folder / entry["name"]
    if not path.is_file():
        raise ValueError(f"{path} is missing; {REMEDY}")
    if (size := path.stat().st_size) != entry["bytes"]:
        raise ValueError(f"{path} has {size:,} bytes, {INDEX_FILE} says {entry['bytes']:,}; {REMEDY}")
    return path


def write_segment(folder: Path, token: str, selection: Selection) -> dict:
    """Write the selected rows in small parts; returns what index.json says about them."""
    first, count, offsets = selection.segments[0], len(selection), selection.offsets()
    files = {"count": count}

    def write(name: str, **tensors: Parts) -> None:
        files[name] = write_tensors(folder / f"{name}-{token}.safetensors", tensors)

    write("vectors", vectors=(first.vectors.dtype, (count, *first.vectors.shape[1:]), selection.vectors()))
    if first.embeddings is not None:
        shape = (count, *first.embeddings.shape[1:])
        write("embeddings", embeddings=(first.embeddings.dtype, shape, selection.embeddings()))
    if total := int(offsets[-1]):
        jpegs = (torch.uint8, (total,), selection.jpegs())
        write("thumbnails", offsets=(torch.int64, (count + 1,), [offsets]), jpegs=jpegs)
    with replacing(folder / f"items-{token}.parquet") as temporary:
        pq.write_table(selection.table(), temporary)
    return files | {"items": file_entry(folder / f"items-{token}.parquet")}


def read_segment(folder: Path, files: dict, dtype: torch.dtype) -> Segment:
    """The segment that index.json describes, large tensors mapped."""
    count = files["count"]
    table = read_items(check_file(folder, files["items"]), count)
    vectors = open_tensors(folder, files["vectors"])["vectors"]
    embeddings = open_tensors(folder, files["embeddings"])["embeddings"] if "embeddings" in files else None
    for rows in (vectors, vectors if embeddings is None else embeddings):
        if len(rows) != count or rows.dtype != dtype:
            path = folder / files["vectors"]["name"]
            raise ValueError(f"{path} holds {len(rows)} x {rows.dtype}, not {count} x {dtype}; {REMEDY}")
    if "thumbnails" in files:
        stored = open_tensors(folder, files["thumbnails"])
        jpegs, offsets = stored["jpegs"], stored["offsets"][:]
    else:
        jpegs, offsets = Rows(torch.empty(0, dtype=torch.uint8)), torch.zeros(count + 1, dtype=torch.int64)
    return Segment(vectors, embeddings, table, jpegs, offsets, files)


def open_tensors(folder: Path, entry: dict) -> dict[str, Rows]:
    return read_tensors(check_size(folder, entry), entry["checksums"] if "sha256" not in entry else None)


def read_items(path: Path, count: int) -> pa.Table:
    try:
        with pq.ParquetFile(path) as file:  # `read_table` would import pandas: a second, while a search takes moments
            table = file.read()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{path} is not a Parquet file ({error}); {REMEDY}") from None
    if table.schema.names == ITEM_COLUMNS.names[:3]:  # version 1
        for field in list(ITEM_COLUMNS)[3:]:
            table = table.append_column(field, pa.nulls(len(table), field.type))
    if table.schema.names != ITEM_COLUMNS.names or table.schema.types != ITEM_COLUMNS.types or len(table) != count:
        raise ValueError(
            f"{path} has {counted(len(table), 'row')} of {', '.join(table.schema.names)}, not {count} items; {REMEDY}"
        )
    return table.combine_chunks()


def write_deleted(folder: Path, token: str, positions: np.ndarray) -> dict:
    path = folder / f"deleted-{token}.npz"
    save_arrays(path, position=positions)
    return file_entry(path)


def read_deleted(folder: Path, entry: dict) -> np.ndarray:
    path = check_file(folder, entry)
    with reading_arrays(path, f"{path} is missing; {REMEDY}", f"{path} cannot be read ({{error}}); {REMEDY}") as arrays:
        return arrays["position"]
