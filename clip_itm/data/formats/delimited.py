"""CSV and TSV, strictly: a row is read as it was written, or refused with its line.

CSV is that of RFC 4180, of pandas and of spreadsheets: a field with commas, quotes or line breaks is in double quotes,
quotes in it are doubled, and a quote anywhere else is an error. A quote that opens by mistake swallows rows until
another one closes it, so a field over several lines that look like rows is an error, too.

TSV has no quoting: every line is a row and every quote is text. What looks as if a program had quoted it anyway is an
error, because its text would not be what was meant.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from clip_itm.data.formats.annotation_files import read_text, split_lines
from clip_itm.data.image_names import IMAGE_SUFFIXES

QUOTED = r'"(?:[^"]++|"")*+"'
FIELD = {separator: rf'(?:{QUOTED}|[^"\n\r{separator}]*+(?:\r(?!\n)[^"\n\r{separator}]*+)*+)' for separator in ",\t"}
RECORD = {separator: re.compile(rf"{field}(?:{separator}{field})*+") for separator, field in FIELD.items()}
WHOLE_FIELDS = {separator: re.compile(rf"(?:{field}{separator})*+") for separator, field in FIELD.items()}
NEXT_FIELD = {separator: re.compile(rf"({field})(?:{separator}|\Z)") for separator, field in FIELD.items()}
IMAGE_NAME = re.compile(rf"\w(?:{'|'.join(map(re.escape, IMAGE_SUFFIXES))})\b", re.IGNORECASE)
QUOTING = "a field with quotes, separators or line breaks in it needs double quotes around it, and quotes in it doubled"
SEPARATING_COMMA = re.compile(r",(?=\S|$)")  # in prose a space follows
SEPARATORS = {";": "semicolons", "\t": "tabs", ",": "commas", "|": "bars"}
MANY_LINES = 5  # of one field, if the table has one column, so that every line looks like a row

Row = tuple[int, list[str]]  # number of its first line, fields


def read_delimited(path: Path, separator: str) -> tuple[list[str], Iterator[Row]]:
    """Header, and the rows below it as (number of their first line, fields); blank lines are skipped.

    `separator` is "," (CSV) or a tab (TSV). Raises ValueError, naming the line, for the errors in the module's
    docstring, for a header that is empty, names a column twice or has another separator, and for rows of other lengths.
    """
    lines, end = split_lines(read_text(path))
    rows = _csv_rows(lines, end, path) if separator == "," else _tsv_rows(lines, end, path)
    number, header = next(rows, (1, []))
    header = [name.strip() for name in header]
    _check_header(header, separator, path, number)
    return header, _of_equal_length(rows, header, separator, path)


def _check_header(header: list[str], separator: str, path: Path, line: int) -> None:
    if len(header) == 1 and (other := next((other for other in SEPARATORS if other in header[0]), None)):
        raise ValueError(_separated_by(other, header[0], separator, path, line))
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise ValueError(
            f"{path}, line {line}: expected a header of different column names, got {header}: "
            f"{twice[0]!r} occurs {header.count(twice[0])} times"
        )
    if not header:
        raise ValueError(f"{path}, line {line}: expected a header of different column names, got {header}")
    if separator == "\t" and any(re.fullmatch(QUOTED, name) for name in header):
        _refuse_quoted(path, line, next(name for name in header if re.fullmatch(QUOTED, name)))


def _separated_by(other: str, header: str, separator: str, path: Path, line: int) -> str:
    wanted = "tabs in a .tsv" if separator == "\t" else f"commas in a {path.suffix}"
    return (
        f"{path}, line {line}: the columns are separated by {SEPARATORS[other]} ({header[:80]!r}); expected {wanted} "
        f"(pandas: to_csv({path.name!r}, sep={separator!r}, index=False))"
    )


def _of_equal_length(rows: Iterator[Row], header: list[str], separator: str, path: Path) -> Iterator[Row]:
    count = len(header)
    for row in rows:
        if len(row[1]) != count:
            advice = (
                "captions with the separator in them need double quotes"
                if separator == ","
                else "captions must have no tabs in them"
            )
            raise ValueError(
                f"{path}, line {row[0]}: {len(row[1])} fields, but the header has {count} ({', '.join(header)}); "
                f"{advice}"
            )
        yield row


# CSV ------------------------------------------------------------------------------------------------------------------


def _csv_rows(lines: list[str], end: str, path: Path) -> Iterator[Row]:
    numbered = enumerate(lines, start=1)
    columns = None
    for number, line in numbered:
        if '"' not in line:
            if line and not line.isspace():
                fields = line.removesuffix("\r").split(",")
                columns = columns or len(fields)
                yield number, fields
            continue
        record = _whole_record(line, numbered, end)
        if columns is None and (quoted := re.match(rf"{QUOTED}([;\t|])", record)):
            raise ValueError(_separated_by(quoted[1], record.split(end)[0], ",", path, number))
        if RECORD[","].fullmatch(record) is None:
            raise ValueError(_misquoted(record, number, end, path))
        fields = _fields(record, ",")
        columns = columns or len(fields)
        if end in record:
            _refuse_swallowed_rows(fields, columns, end, number, path)
        yield number, fields


def _whole_record(line: str, more: Iterator[tuple[int, str]], end: str) -> str:
    """A line and those after it until its quotes are even."""
    parts, quotes = [line], line.count('"')
    while quotes % 2:
        _, following = next(more, (0, None))
        if following is None:
            break
        parts.append(following)
        quotes += following.count('"')
    return end.join(parts).removesuffix("\r")


def _fields(record: str, separator: str) -> list[str]:
    fields, place = [], 0
    while True:
        match = NEXT_FIELD[separator].match(record, place)
        field, place = match[1], match.end()
        fields.append(field[1:-1].replace('""', '"') if field[:1] == '"' else field)
        if match.end(1) == place:
            return fields


def _misquoted(record: str, number: int, end: str, path: Path) -> str:
    place = WHOLE_FIELDS[","].match(record).end()
    rest = record[place:]
    number += record.count(end, 0, place)
    closed = re.match(QUOTED, rest)
    if closed:
        last = number + closed[0].count(end)
        what = "the quotes around a field close before its end"
        if last > number:
            what = f"the quote that opens here closes on line {last}, in the middle of a field"
    elif rest.startswith('"'):
        what = "the quote that opens here is never closed"
    else:
        what = "a quote in the middle of a field"
    return f"{path}, line {number}: not valid CSV ({what}: {rest.split(end)[0][:60]!r}); {QUOTING}"


def _refuse_swallowed_rows(fields: list[str], columns: int, end: str, number: int, path: Path) -> None:
    """Raise ValueError if the lines of one field look like rows of their own: a quote opened by mistake."""
    for column, field in enumerate(fields):
        lines = field.split(end)
        if len(lines) == 1:
            continue
        # a quote closes in the column in which it opened: its first line has the columns from there on, its last line
        # those up to there, and the lines between have all
        counts = [columns - column, *[columns] * (len(lines) - 2), column + 1]
        counted = [(line, count) for line, count in zip(lines, counts, strict=True) if line.strip()]
        are_several = any(count > 1 for _, count in counted) or len(counted) >= MANY_LINES
        are_rows = all(len(SEPARATING_COMMA.findall(line)) == count - 1 for line, count in counted)
        name_images = any(line.count(",") == count - 1 > 0 and IMAGE_NAME.search(line) for line, count in counted)
        if (are_several and are_rows) or name_images:
            raise ValueError(
                f"{path}, line {number}: one field goes over {len(lines)} lines, which look like rows: a quote opens "
                f"by mistake ({lines[0][:60]!r}); {QUOTING}"
            )


# TSV ------------------------------------------------------------------------------------------------------------------


def _tsv_rows(lines: list[str], end: str, path: Path) -> Iterator[Row]:
    columns = None
    for number, line in enumerate(lines, start=1):
        if not line or line.isspace():
            continue
        fields = line.removesuffix("\r").split("\t")
        columns = columns or len(fields)
        if '"' in line:
            _refuse_quoted_fields(fields, number, path)
            if line.count('"') % 2 and ('\t"' in line or line[0] == '"'):
                _refuse_quoted_lines(lines, number, columns, end, path)
        yield number, fields


def _refuse_quoted_fields(fields: Sequence[str], number: int, path: Path) -> None:
    for field in fields:
        if field[:1] == '"' and re.fullmatch(QUOTED, field) and ('""' in field[1:-1] or "\r" in field or field == '""'):
            _refuse_quoted(path, number, field)


def _refuse_quoted_lines(lines: list[str], number: int, columns: int, end: str, path: Path) -> None:
    """Raise ValueError if a quoting program may have written one row over several lines, and they are not rows."""
    record = _whole_record(lines[number - 1], ((k, lines[k]) for k in range(number, len(lines))), end)
    below = [line for line in record.split(end)[1:] if line.strip()]
    are_rows = all(line.count("\t") == columns - 1 and IMAGE_NAME.search(line) for line in below)
    if below and not are_rows and RECORD["\t"].fullmatch(record) and len(_fields(record, "\t")) == columns:
        _refuse_quoted(path, number, record)


def _refuse_quoted(path: Path, number: int, text: str) -> None:
    raise ValueError(
        f"{path}, line {number}: {text[:60]!r} is quoted as in a CSV, and a TSV is read without quoting; save the "
        "table as .csv, or without quotes (pandas: to_csv(..., sep='\\t', quoting=csv.QUOTE_NONE))"
    )
