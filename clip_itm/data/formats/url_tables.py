"""Tables of URLs and captions, as LAION and DataComp are published: refused with the command that downloads photos."""

import json
import shlex
from collections.abc import Collection
from typing import NoReturn

from clip_itm.data.formats.tables import CAPTION_COLUMNS, URL_COLUMNS, find_column

SIDE = 256  # pixels of the shorter side, which the usual towers crop to 224
WEB = ("http://", "https://")  # what img2dataset downloads
FORMATS = (".parquet", ".csv", ".tsv", ".json", ".jsonl")


def url_column(columns: Collection[str]) -> str | None:
    """The column of URLs, by its name."""
    return find_column(list(columns), *URL_COLUMNS)


def refuse_url_table(table: str, columns: Collection[str], url: str | None = None) -> NoReturn:
    """Raise the ValueError for a table (a file or a folder of them) with URLs in place of photos."""
    url = url or url_column(columns)
    caption = find_column(list(columns), *CAPTION_COLUMNS)
    kind = next((end[1:] for end in FORMATS if table.lower().endswith(end)), "parquet")
    words = ["img2dataset", "--url_list", table, "--input_format", kind, "--url_col", url]
    words += ["--caption_col", caption] if caption else []
    if kept := [name for name in columns if name.lower() in ("uid", "image_id", "sha256")]:
        words += ["--save_additional_columns", json.dumps(kept)]
    words += ["--output_format", "webdataset", "--output_folder", "photos"]
    words += ["--image_size", str(SIDE), "--resize_mode", "keep_ratio"]
    raise ValueError(
        f"{table} has URLs (column {url!r}) and no photos. Download them into tars with\n  {shlex.join(words)}\n"
        "and read these with data.source webdataset, data.root photos"
    )
