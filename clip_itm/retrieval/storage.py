"""The files of a saved index.

    index.json                   what there is, with size and sha256 of every file; replaced last, so it is the commit
    vectors-0000.safetensors     [n, D] of one segment, in the type that the index stores
    embeddings-0000.safetensors  [n, ...], only where they are more than the vectors
    items-0000.parquet           id, path, caption
    thumbnails-0000.safetensors  uint8 of all JPEGs in a row and their offsets, only where there are any
    deleted-0001.npz             positions of deleted items
    hnsw-0001.faiss              graph or lists of an approximate search

Every save writes files of a new number and none that a committed index.json names, then index.json, then removes what
nothing names any more: whatever happens in between, the old index or the new one can be read.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from contextlib import suppress
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from clip_itm.files import reading_arrays, replacing, save_arrays, write_json
from clip_itm.retrieval.segments import ITEM_COLUMNS, Segment, Selection

INDEX_FILE = "index.json"
FORMAT = "clip_itm search index"
VERSION = 1
OUR_FILES = re.compile(
    r"(vectors|embeddings|items|thumbnails|deleted|hnsw|ivf-pq)-\d{4,}\.(safetensors|parquet|npz|faiss)"
)
SAFETENSORS_TYPES = {torch.float32: "F32", torch.float16: "F16", torch.uint8: "U8", torch.int64: "I64"}
REMEDY = "restore it from a copy, or index the gallery again"


def read_index_file(folder: Path) -> tuple[dict, str]:
    """index.json and its sha256; the values are still to be checked."""
    path = folder / INDEX_FILE
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{folder} holds no index: there is no {INDEX_FILE}; make one with clip-itm index") from None
    try:
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}")
        version = content["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no {INDEX_FILE} of a search index ({error!r}); {REMEDY}") from None
    if version != VERSION:
        raise ValueError(
            f"{path} has version {version!r} of the format, this clip_itm reads version {VERSION}; index the gallery "
            f"again, or use the clip_itm that made it"
        )
    return content, hashlib.sha256(text).hexdigest()


def committed(folder: Path) -> str | None:
    """The sha256 of the folder's index.json, None where there is none."""
    path = folder / INDEX_FILE
    return sha256_of(path) if path.is_file() else None


def commit(folder: Path, content: dict) -> str:
    """Replace index.json, remove the files of ours that it does not name, and return its sha256."""
    write_json(folder / INDEX_FILE, {"format": FORMAT, "version": VERSION, **content})
    named = {file["name"] for file in named_files(content)}
    for path in folder.iterdir():
        if OUR_FILES.fullmatch(path.name) and path.name not in named:
            with suppress(OSError):  # mapped by a process on a system that then refuses; the next save tries again
                path.unlink()
    return sha256_of(folder / INDEX_FILE)


def named_files(content: dict) -> list[dict]:
    """Every {name, bytes, sha256} of index.json."""
    parts = [*content["segments"], {"deleted": content["deleted"]}, content["shortlist"] or {}]
    return [entry for part in parts for entry in part.values() if isinstance(entry, dict)]


def describe_file(path: Path) -> dict:
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)}


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_file(folder: Path, entry: dict, hashed: bool) -> Path:
    """The path of a file that index.json names; its size, and if `hashed` its content, are what they were."""
    if not OUR_FILES.fullmatch(entry["name"]):
        raise ValueError(f"{folder / INDEX_FILE} names {entry['name']!r}, which is no file of an index; {REMEDY}")
    path = folder / entry["name"]
    if not path.is_file():
        raise ValueError(f"{path} is missing; {REMEDY}")
    if (size := path.stat().st_size) != entry["bytes"]:
        raise ValueError(f"{path} has {size:,} bytes, {INDEX_FILE} says {entry['bytes']:,}; {REMEDY}")
    if hashed and sha256_of(path) != entry["sha256"]:
        raise ValueError(f"{path} is not what was saved: its sha256 is another than in {INDEX_FILE}; {REMEDY}")
    return path


def write_segment(folder: Path, number: int, selection: Selection) -> dict:
    """Write the selected rows in small parts; returns what index.json says of them."""
    first, count, offsets = selection.segments[0], len(selection), selection.offsets()
    files = {"count": count}

    def write(name: str, **tensors: tuple[torch.dtype, tuple[int, ...], Iterable[Tensor]]) -> None:
        files[name] = write_tensors(folder / f"{name}-{number:04d}.safetensors", tensors)

    write("vectors", vectors=(first.vectors.dtype, (count, *first.vectors.shape[1:]), selection.vectors()))
    if first.embeddings is not None:
        shape = (count, *first.embeddings.shape[1:])
        write("embeddings", embeddings=(first.embeddings.dtype, shape, selection.embeddings()))
    if total := int(offsets[-1]):
        jpegs = (torch.uint8, (total,), selection.jpegs())
        write("thumbnails", offsets=(torch.int64, (count + 1,), [offsets]), jpegs=jpegs)
    with replacing(folder / f"items-{number:04d}.parquet") as temporary:
        pq.write_table(selection.table(), temporary)
    return files | {"items": describe_file(folder / f"items-{number:04d}.parquet")}


def write_tensors(path: Path, tensors: dict[str, tuple[torch.dtype, tuple[int, ...], Iterable[Tensor]]]) -> dict:
    """A safetensors file whose tensors (type, shape, rows in parts) need not fit in memory."""
    header, end = {}, 0
    for name, (dtype, shape, _) in tensors.items():
        start, end = end, end + int(np.prod(shape)) * dtype.itemsize
        header[name] = {"dtype": SAFETENSORS_TYPES[dtype], "shape": shape, "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # the numbers begin at a multiple of 8
    head = len(encoded).to_bytes(8, "little") + encoded
    parts = (part.contiguous().numpy().data for _, _, parts in tensors.values() for part in parts)
    digest = hashlib.sha256()
    with replacing(path) as temporary, temporary.open("wb") as file:
        for data in chain([head], parts):
            file.write(data)
            digest.update(data)
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def read_segment(folder: Path, files: dict, dtype: torch.dtype, hashed: bool = False) -> Segment:
    """The segment that index.json describes, large tensors mapped; `hashed` reads all of them once to compare."""
    count = files["count"]
    table = read_items(check_file(folder, files["items"], hashed=True), count)
    vectors = read_tensors(folder, files["vectors"], hashed)["vectors"]
    embeddings = read_tensors(folder, files["embeddings"], hashed)["embeddings"] if "embeddings" in files else None
    for tensor in (vectors, vectors if embeddings is None else embeddings):
        if len(tensor) != count or tensor.dtype != dtype:
            path = folder / files["vectors"]["name"]
            raise ValueError(f"{path} holds {len(tensor)} x {tensor.dtype}, not {count} x {dtype}; {REMEDY}")
    if "thumbnails" in files:
        stored = read_tensors(folder, files["thumbnails"], hashed)
        jpegs, offsets = stored["jpegs"], stored["offsets"]
    else:
        jpegs, offsets = torch.empty(0, dtype=torch.uint8), torch.zeros(count + 1, dtype=torch.int64)
    return Segment(vectors, embeddings, table, jpegs, offsets, files)


def read_tensors(folder: Path, entry: dict, hashed: bool) -> dict[str, Tensor]:
    path = check_file(folder, entry, hashed)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is no safetensors file ({error}); {REMEDY}") from None


def read_items(path: Path, count: int) -> pa.Table:
    table = pq.read_table(path)
    if table.schema.names != ITEM_COLUMNS.names or len(table) != count:
        raise ValueError(
            f"{path} has {len(table)} rows of {', '.join(table.schema.names)}, not {count} items; {REMEDY}"
        )
    return table.combine_chunks()


def write_deleted(folder: Path, number: int, positions: np.ndarray) -> dict:
    path = folder / f"deleted-{number:04d}.npz"
    save_arrays(path, position=positions)
    return describe_file(path)


def read_deleted(folder: Path, entry: dict) -> np.ndarray:
    path = check_file(folder, entry, hashed=True)
    with reading_arrays(path, f"{path} is missing; {REMEDY}", f"{path} cannot be read ({{error}}); {REMEDY}") as arrays:
        return arrays["position"]
