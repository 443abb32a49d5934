"""Users' own tables as rows of named values: CSV, TSV, JSON lines and JSON."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from clip_itm.data.formats.annotation_files import parse_json, read_json, read_text, written_lines
from clip_itm.data.formats.delimited import read_delimited

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json")
TABLES = (  # names by which a folder of photos is recognised
    *("metadata.jsonl", "metadata.csv", "captions.jsonl", "captions.csv", "captions.tsv", "captions.txt"),
    *("metadata.tsv", "metadata.json", "captions.json"),
)
IMAGE_COLUMNS = (
    *("image", "file_name", "filename", "filepath", "image_path", "path", "file", "photo", "img"),
    *("file_path", "image_file", "image_name", "image_filename", "img_path", "img_name", "photo_path", "picture"),
)
CAPTION_COLUMNS = (
    *("captions", "caption", "texts", "text", "sentences", "sentence", "description", "title"),
    *("caption_text", "image_caption", "alt_text", "alttext", "alt", "descriptions", "comment"),
)
URL_COLUMNS = ("url", "image_url", "img_url", "photo_url", "image_link", "link", "src")
WEIGHT_COLUMNS = ("caption_weights", "caption_weight")


def is_table(path: Path) -> bool:
    """Whether the suffix is that of a table, in upper or lower case."""
    return path.suffix.lower() in TABLE_SUFFIXES


def read_table(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, values by column) of every row; the place is file:line (file[index] in JSON), for messages and ids.

    The suffix decides: .tsv has tabs and no quoting, .jsonl (.ndjson) an object per line, .json a list of objects or an
    object of columns, anything else is CSV. Blank lines are skipped. Raises ValueError, naming file and line, for
    anything malformed.
    """
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        return _json_lines(path)
    if suffix == ".json":
        return _json_rows(path)
    return _delimited(path, "\t" if suffix == ".tsv" else ",")


def _delimited(path: Path, separator: str) -> Iterator[tuple[str, dict[str, str]]]:
    header, rows = read_delimited(path, separator)
    name = path.name
    for number, fields in rows:
        yield f"{name}:{number}", dict(zip(header, fields, strict=True))


def _json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in written_lines(path):
        yield f"{path.name}:{number}", _object(parse_json(line, path, number), f"{path}, line {number}")


def _json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if not read_text(path).strip():
        raise ValueError(f"{path}: the file is empty")
    content = read_json(path)
    if isinstance(content, dict):
        content = _rows_of_columns(content, path)
    if not isinstance(content, list):
        raise ValueError(f"{path}: expected a list of objects, one per row, got {str(content)[:80]!r}")
    for number, values in enumerate(content):
        yield f"{path.name}[{number}]", _object(values, f"{path}, entry {number}")


def _rows_of_columns(content: dict, path: Path) -> list[dict]:
    """Rows from {column: list of values} or, as `to_json` of pandas writes by default, {column: {row: value}}."""
    if not content:
        return []
    columns = {name: list(c.values()) if isinstance(c, dict) else c for name, c in content.items()}
    same_rows = len({tuple(c) for c in content.values() if isinstance(c, dict)}) <= 1
    lengths = {len(values) if isinstance(values, list) else None for values in columns.values()}
    if None in lengths or len(lengths) != 1 or not same_rows:
        if {"images", "annotations"} <= content.keys():
            raise ValueError(f"{path}: these are COCO captions, which data.source: coco reads, and no table")
        raise ValueError(
            f"{path}: expected a list of objects, one per row, or an object of columns of equal length; found an "
            f"object of {', '.join(list(content)[:8])} (pandas: to_json({path.name!r}, orient='records'))"
        )
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _object(values: Any, where: str) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise ValueError(f"{where}: expected an object with columns as keys, got {str(values)[:80]!r}")
    return values


def find_column(names: Sequence[str], *wanted: str) -> str | None:
    """The first of the `wanted` columns that is among `names`, ignoring case, with spaces or hyphens for `_`."""
    for name in wanted:
        if name in names:
            return name
    folded = {_folded(name): name for name in reversed(list(names))}
    return next((folded[_folded(name)] for name in wanted if _folded(name) in folded), None)


def _folded(name: str) -> str:
    return name.strip().casefold().replace(" ", "_").replace("-", "_")
