"""A file of captions without images, for an index: a caption per line, or a table with a column of captions."""

from collections import Counter
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

from clip_itm.data.formats.annotation_files import BrokenRow, written_lines
from clip_itm.data.formats.cells import captions_of
from clip_itm.data.formats.tables import CAPTION_COLUMNS, find_column, is_table, read_table


def read_caption_file(file: Path, skipped: list[str] | None = None) -> dict[str, str]:
    """The captions of a .txt (one per line) or of a table (as `data.source: folder` reads them), by id and in order.

    An id is made from the caption itself, with a counter if the caption occurs again, so that lines added or removed
    above do not change it. Raises ValueError, naming the line, for a caption that is empty or not text; if `skipped` is
    given, the message is appended to it instead. A file that is not such a table, or has no captions left, is always an
    error.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "captions.txt"
        ...     _ = file.write_text("a red mug\\na blue mug\\n")
        ...     list(read_caption_file(file).values())
        ['a red mug', 'a blue mug']
    """
    captions: dict[str, str] = {}
    seen: Counter[str] = Counter()
    for where, cell in _cells(file):
        try:
            found = [caption.strip() for caption in captions_of(cell, where)]
            if not all(found):
                raise BrokenRow(f"{where}: the caption is empty; write it, or remove the row")
        except BrokenRow as error:
            if skipped is None:
                raise
            skipped.append(str(error))
            continue
        for caption in found:
            seen[caption] += 1
            captions[caption_id(caption, seen[caption])] = caption
    if not captions:
        raise ValueError(f"{file}: no captions in it")
    return captions


def caption_id(caption: str, occurrence: int = 1) -> str:
    """The id of a caption at its n-th occurrence in a file."""
    digest = blake2b(caption.encode(), digest_size=12).hexdigest()
    return digest if occurrence == 1 else f"{digest}-{occurrence}"


def _cells(file: Path) -> Iterator[tuple[str, object]]:
    """(place for messages, cell) of every row."""
    if file.suffix.lower() == ".txt":
        yield from ((f"{file.name}:{number}", line) for number, line in written_lines(file))
        return
    if not is_table(file):
        raise ValueError(
            f"{file}: expected a folder of photos, or captions in a .txt, .csv, .tsv, .jsonl or .json file"
        )
    column = None
    for where, values in read_table(file):
        column = column or find_column(values, *CAPTION_COLUMNS)
        if column is None:
            raise ValueError(
                f"{where}: no column of captions ({', '.join(CAPTION_COLUMNS)}); the columns are {', '.join(values)}"
            )
        yield f"{where}, column {column!r}", values.get(column)
