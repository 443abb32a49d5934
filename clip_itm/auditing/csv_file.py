"""The table of an audit as CSV: RFC 4180, UTF-8, with texts that no spreadsheet takes for a formula."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from clip_itm.auditing.rows import AT_ONCE
from clip_itm.files import replacing

FORMULA = r"^(['=+\-@\t\r\n＝＋－＠])"  # beginnings of texts that a spreadsheet may execute, or that look escaped


def write_csv(path: Path, table: pa.Table) -> None:
    """Write a header and every row, with lines that end in CR LF; null is an empty cell.

    A text that begins with = + - @, a tab, a line break or an apostrophe gets an apostrophe in front; taking it off
    gives the text back. Lists are JSON.
    """
    options = csv.WriteOptions(eol="\r\n", quoting_style="needed")
    with replacing(path) as temporary:
        schema = _harmless(table.slice(0, 0)).schema
        with csv.CSVWriter(temporary, schema, write_options=options) as file:
            for start in range(0, len(table), AT_ONCE):
                file.write_table(_harmless(table.slice(start, AT_ONCE)))


def _harmless(table: pa.Table) -> pa.Table:
    columns = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_nested(column.type):
            values = [None if value is None else json.dumps(value, ensure_ascii=False) for value in column.to_pylist()]
            column = pa.chunked_array([pa.array(values, pa.string())])
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            column = pc.replace_substring_regex(column, FORMULA, r"'\1")
        columns[name] = column
    return pa.table(columns)
