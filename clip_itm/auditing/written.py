"""What an audit found, in the formats of other programs, next to its table; other programs' files stay."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from clip_itm.auditing.csv_file import write_csv
from clip_itm.auditing.fiftyone import write_samples
from clip_itm.auditing.label_studio import write_tasks
from clip_itm.auditing.rows import PHOTOS, photo_files
from clip_itm.training.folder import other_files, record, staged

TABLE, PAGE = "audit.parquet", "audit.html"
FORMATS = {"csv": "audit.csv", "label-studio": "label-studio", "fiftyone": "fiftyone"}  # and the name of file or folder


def require_audit(out: Path) -> None:
    """Raise ValueError if an audit would replace files that no audit wrote, or if a folder has the name of one."""
    taken = [path for path in (out / TABLE, out / PAGE) if path.exists()]
    if _is_audit(out / TABLE):
        taken = [path for path in taken if path.is_dir()]
    if taken:
        raise ValueError(
            f"{taken[0]} was written by no audit of clip-itm: move it away, or name another folder (--out)"
        )


def _is_audit(table: Path) -> bool:
    try:
        return b"recipe_sha256" in pq.read_schema(table).metadata
    except (pa.ArrowException, OSError, TypeError):
        return False


def require_formats(out: Path, formats: Iterable[str]) -> None:
    """Raise ValueError for an unknown format, and if it would replace files that no audit wrote."""
    formats = list(formats)
    if unknown := [name for name in formats if name not in FORMATS]:
        raise ValueError(f"{unknown[0]!r} is no format of an audit; expected {', '.join(FORMATS)}")
    names = {FORMATS[name] for name in formats} | ({PHOTOS} if set(formats) - {"csv"} else set())
    others = other_files(out) if out.is_dir() else []
    if taken := [path for path in others if path.split("/")[0] in names]:
        raise ValueError(f"{out / taken[0]} was written by no audit of clip-itm: move it away, or name another folder")


def write_formats(
    out: Path,
    formats: Iterable[str],
    table: pa.Table,
    image: np.ndarray,
    rows: Dataset,
    threshold: float,
    judge: str,
) -> dict[str, Path]:
    """Write `table` (that of an `Audit`) into the folder `out` in `formats`: name of the format -> file or folder.

    image: int64 [N], the image of every row of the table. rows: of the split [P], for its photos. threshold: below it
    a pair counts as wrong. judge: whose judgement it is. Only what an earlier call wrote is replaced; raises ValueError
    if something else is in the way, or a photo cannot be read.
    """
    formats = list(dict.fromkeys(formats))
    require_formats(out, formats)
    out.mkdir(parents=True, exist_ok=True)
    if set(formats) - {"csv"}:
        photos, numbered = photo_files(rows, out), table.append_column("photo_number", pa.array(image))
    for name in formats:
        match name:
            case "csv":
                record(out, [FORMATS[name]])
                write_csv(out / FORMATS[name], table)
            case "label-studio":
                with staged(out, FORMATS[name]) as folder:
                    write_tasks(folder, numbered, photos, threshold, judge)
            case "fiftyone":
                with staged(out, FORMATS[name]) as folder:
                    write_samples(folder, numbered, photos, threshold)
    return {name: out / FORMATS[name] for name in formats}
