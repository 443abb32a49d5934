"""The rows of an audit's table for other programs: as plain values, and with a file for every photo."""

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset

from clip_itm.data.images import image_bytes, image_paths, naming_image, open_image
from clip_itm.data.marks import pair_hash
from clip_itm.training.folder import staged

AT_ONCE = 4096  # rows of the table that are Python objects at the same time
PHOTOS = "photos"  # folder of photos that the data set itself holds


def plain_rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Rows of JSON values: numbers with their significant digits only, None for what is not defined."""
    for batch in table.to_batches(max_chunksize=AT_ONCE):
        for row in batch.to_pylist():
            yield {name: _plain(value) for name, value in row.items()}


def _plain(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return float(f"{value:.7g}") if math.isfinite(value) else None  # float32 has seven digits


def name_of(row: Mapping[str, Any]) -> str:
    """The `pair_hash` of a row, by which marks find the pair again."""
    return row.get("pair_hash") or pair_hash(row["image_id"], row["caption"])


def photo_files(rows: Dataset, out: Path) -> list[str]:
    """The absolute path of every image of a split [P]; those that the data set itself holds are written below `out`.

    Raises ValueError, naming the image, if one of the latter is not a photo.
    """
    paths = image_paths(rows)
    if None not in paths:
        return [os.path.abspath(path) for path in paths]
    folder = Path(os.path.abspath(out)) / PHOTOS
    with staged(out, PHOTOS) as new:
        for number, path in enumerate(paths):
            if path is None:
                image = rows[number]["image"]
                with naming_image(image):
                    name = f"{number:06d}.{open_image(image).format.lower()}"
                (new / name).write_bytes(image_bytes(image))
                paths[number] = str(folder / name)
    return [os.path.abspath(path) for path in paths]
