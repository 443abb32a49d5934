"""Data given in Python (rows, data sets of `datasets`, or the name of a place), and the section that describes them.

Data in memory become a data set of two columns that can be saved, so that a recipe can name it. Encoded images stay as
they are and paths stay paths; only decoded images (PIL, arrays) are encoded, as PNG, which loses nothing.
"""

import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from datasets import Dataset, DatasetDict, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image

from clip_itm.data.configuration import HubData
from clip_itm.data.formats.tables import CAPTION_COLUMNS, IMAGE_COLUMNS, find_column
from clip_itm.data.inputs import decode_image
from clip_itm.data.recognised import recognised
from clip_itm.offline import looks_like_path

logger = logging.getLogger(__name__)

ENCODED = {"bytes": Value("binary"), "path": Value("string")}  # an image that `save_to_disk` leaves as it is
BATCH = 100  # rows
EXPECTED = (
    "expected a Dataset, a DatasetDict, a list of rows, a dict of these by split, a folder, a name on the Hub, or a "
    "data section"
)


@dataclass(frozen=True)
class GivenData:
    """A data set in memory, and the section of the recipe that reads it from where it is saved (`section.path`)."""

    splits: Dataset | DatasetDict
    section: HubData

    @cached_property
    def content(self) -> str:
        """Hash of splits, images (their bytes, or their paths) and captions in order, wherever they come from."""
        digest = xxhash.xxh3_128()
        parts = self.splits.items() if isinstance(self.splits, DatasetDict) else [("", self.splits)]
        for name, rows in parts:
            digest.update(f"split {len(name)} {name} {len(rows)} {rows.column_names}\n".encode())
            for value in _values(rows):
                digest.update(f"{'none' if value is None else len(value)} ".encode())
                digest.update(value or b"")
        return digest.hexdigest()

    def save(self, folder: Path) -> None:
        self.splits.save_to_disk(str(folder))


def _values(rows: Dataset) -> Iterator[Any]:
    """Every value of every column, as bytes."""
    for batch in rows.with_format("arrow").iter(batch_size=BATCH):
        for column in batch.columns:
            for chunk in column.chunks:
                if pa.types.is_struct(chunk.type):
                    yield from (None if one is None else memoryview(one) for one in _buffers(chunk.field("bytes")))
                    yield from (None if one is None else one.encode() for one in chunk.field("path").to_pylist())
                else:
                    yield from (repr(one).encode() for one in chunk.to_pylist())


def _buffers(column: pa.Array) -> Iterator[pa.Buffer | None]:
    return (content.as_buffer() for content in column)


def given_data(data: Any, keys: Mapping[str, Any], path: Path) -> dict[str, Any] | GivenData:
    """What `data` is: the keys of a data section, or a data set in memory, to be saved at `path`.

    `keys`: keys of the data section besides those that name the data. Raises ValueError if it is not a data set.
    """
    if isinstance(data, str | Path):
        return {**_place(data), **keys}
    if isinstance(data, Mapping) and not isinstance(data, DatasetDict):
        data = DatasetDict({str(name): _rows(rows, f"split {name}", keys) for name, rows in data.items()})
        if not data:
            raise ValueError(f"data: an empty dict; {EXPECTED}")
    elif not isinstance(data, DatasetDict):
        data = _rows(data, "data", keys)
    if isinstance(data, DatasetDict):
        chosen = {name: chosen_columns(rows, f"split {name}", keys) for name, rows in data.items()}
        columns = {name: found for name, (_, found) in chosen.items()}
        first, found = next(iter(columns.items()))
        for name, other in columns.items():
            if other != found:
                raise ValueError(
                    f"data: split {name} has the columns {', '.join(other.values())}, split {first} has "
                    f"{', '.join(found.values())}; give all splits the same ones"
                )
        splits: Dataset | DatasetDict = DatasetDict({name: rows for name, (rows, _) in chosen.items()})
    else:
        splits, found = chosen_columns(data, "data", keys)
    return GivenData(splits, HubData(path=str(path), **{**keys, **found}))


def _place(data: str | Path) -> dict[str, Any]:
    """The keys for a folder, files, or a name on the Hub."""
    if (found := recognised(data)) is not None:
        logger.info("%s: %s", data, found.sentence)
        return dict(found.section)
    if Path(data).expanduser().exists() or looks_like_path(data):
        raise ValueError(f"data: there is no folder {data}; {EXPECTED}")
    return {"source": "hub", "path": str(data)}


def _rows(data: Any, where: str, keys: Mapping[str, Any]) -> Dataset:
    """A data set made of a list of rows; a data set as it is."""
    if isinstance(data, Dataset):
        return data
    if isinstance(data, str | bytes) or not isinstance(data, Sequence):
        raise ValueError(f"{where}: {type(data).__name__} is no data set; {EXPECTED}")
    if not data:
        raise ValueError(f"{where}: there are no rows in it")
    first = data[0]
    image, caption = 0, 1
    if isinstance(first, Mapping):
        image = keys.get("image_column") or find_column(list(first), *IMAGE_COLUMNS)
        caption = keys.get("caption_column") or find_column(list(first), *CAPTION_COLUMNS)
    images, captions = [], []
    for number, row in enumerate(data):
        place = f"{where}, row {number}"
        if isinstance(row, Mapping) != isinstance(first, Mapping) or not _has(row, image, caption):
            raise ValueError(
                f"{place}: expected {_shape(first, image, caption)} as in row 0, found {_short(row)}"
                if number
                else f'{place}: expected {{"image": ..., "caption": ...}} or (image, caption), found {_short(row)}'
            )
        images.append(_encoded(row[image], place))
        captions.append(_captions(row[caption], place))
    features = Features({_name(image, "image"): ENCODED, _name(caption, "caption"): List(Value("string"))})
    return Dataset.from_dict(dict(zip(features, (images, captions), strict=True)), features=features)


def _has(row: Any, image: Any, caption: Any) -> bool:
    if isinstance(row, Mapping):
        return image in row and caption in row
    return isinstance(row, list | tuple) and len(row) == 2


def _shape(row: Any, image: Any, caption: Any) -> str:
    return f'{{"{image}": ..., "{caption}": ...}}' if isinstance(row, Mapping) else "(image, caption)"


def _name(key: str | int, default: str) -> str:
    return default if isinstance(key, int) else key


def _encoded(image: Any, where: str) -> dict[str, Any]:
    """{"bytes", "path"} of an image as a user has it."""
    if isinstance(image, Mapping) and {"bytes", "path"} & image.keys():
        return {"bytes": image.get("bytes"), "path": image.get("path")}
    if isinstance(image, str | Path):
        return {"bytes": None, "path": str(image)}
    if isinstance(image, bytes):
        return {"bytes": image, "path": None}
    if not isinstance(image, Image.Image | np.ndarray):
        raise ValueError(
            f"{where}: {type(image).__name__} is no image; expected a PIL image, a path, an array [H, W, 3] of uint8, "
            "or the bytes of a file"
        )
    try:
        pixels = decode_image(image)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    file = io.BytesIO()
    pixels.save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def _captions(value: Any, where: str) -> list[str]:
    captions = [value] if isinstance(value, str) else list(value) if isinstance(value, list | tuple) else [value]
    if not captions or not all(isinstance(caption, str) and caption.strip() for caption in captions):
        raise ValueError(f"{where}: expected a caption or a list of captions, found {_short(value)}")
    return captions


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def chosen_columns(rows: Dataset, where: str, keys: Mapping[str, Any]) -> tuple[Dataset, dict[str, str]]:
    """The columns of a data set that a data section reads, and which of its keys name them.

    Columns of images hold {"bytes", "path"} afterwards, neither decoded nor read. Raises ValueError if there is no
    column of images or of captions.
    """
    names = list(rows.features)
    typed = [name for name in names if isinstance(rows.features[name], ImageFeature)]
    image = keys.get("image_column") or find_column(typed, *IMAGE_COLUMNS) or next(iter(typed), None)
    found = {
        "image_column": image or find_column(names, *IMAGE_COLUMNS),
        "caption_column": keys.get("caption_column") or find_column(names, *CAPTION_COLUMNS),
    }
    for key, name in found.items():
        if name not in names:
            kind = key.removesuffix("_column")
            asked = f"no column {name!r}" if name else f"which column holds the {kind}s is not known"
            raise ValueError(f"{where}: {asked}; name it with {key} (the columns are {', '.join(names)})")
    others = (keys.get("image_id_column") or find_column(names, "image_id"), keys.get("split_column"))
    kept = [*found.values(), *(name for name in others if name in names)]
    rows = rows.select_columns(list(dict.fromkeys(kept))).with_format(None)
    if isinstance(rows.features[found["image_column"]], ImageFeature):
        # as a plain pair, because `save_to_disk` would copy the files that a column of images names
        rows = rows.cast_column(found["image_column"], ImageFeature(decode=False))
        rows.info.features[found["image_column"]] = ENCODED  # the same in Arrow: no row has to be cast
        rows = rows.select_columns(rows.column_names)  # which tells it to the Arrow table
    return rows, {key: str(name) for key, name in found.items()}
