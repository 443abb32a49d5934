"""Which rows of a data set are one image: many sets have a row per caption, and a split must never tear them apart.

An image is known by `data.image_id_column`, else by a column `image_id`, else by its bytes, or by its path if the data
set only names it. That is its id, so a split by hash does not depend on where a row is. A column `image_id` that the
recipe does not name may number rows: an image that has several ids there keeps the first.
"""

import os
from collections import defaultdict
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from datasets import Dataset, Image, Value
from tqdm.auto import tqdm

from clip_itm.data.configuration import HubData
from clip_itm.data.formats.name_spelling import canonical, check_name
from clip_itm.data.formats.tables import find_column

BATCH = 100  # rows; their bytes are looked at in place
TAIL = 1024  # bytes at the end of an image, in which those of one size nearly always differ


def column_of(dataset: Dataset, key: str, data: HubData) -> list:
    """The values of the column that the recipe names under `key`."""
    column = getattr(data, key)
    if column not in dataset.features:
        raise ValueError(
            f"{data.path}: no column {column!r} (data.{key}); the columns are {', '.join(dataset.features)}"
        )
    return dataset.select_columns([column]).with_format(None)[column][:]


def images_of(dataset: Dataset, data: HubData, name: str) -> Dataset:
    """The column of images alone, as `image`, not decoded. Raises ValueError for a column of anything else."""
    kind = dataset.features.get(data.image_column)
    is_text = isinstance(kind, Value) and kind.dtype in ("string", "large_string", "binary", "large_binary", "null")
    is_struct = isinstance(kind, dict) and set(kind) == {"bytes", "path"}
    if not (isinstance(kind, Image) or is_text or is_struct):
        found = "" if kind is None else f": it holds {getattr(kind, 'dtype', None) or type(kind).__name__}"
        raise ValueError(
            f"{data.path}, split {name}: data.image_column {data.image_column!r} is no column of images or paths"
            f"{found}; the columns are {', '.join(dataset.features)}"
        )
    images = dataset.select_columns([data.image_column])
    if data.image_column != "image":
        images = images.rename_column(data.image_column, "image")
    if isinstance(kind, Value) and kind.dtype == "null":
        images = images.cast_column("image", Value("string"))
    return images.cast_column("image", Image(decode=False))


def image_ids_of(dataset: Dataset, images: Dataset, data: HubData, name: str) -> tuple[list[str], str]:
    """The image id [rows] of every row, and what it was made of. Raises ValueError for a row that names no image."""
    place = f"{data.path}, split {name}"
    sizes, paths = _sizes_and_paths(images)
    for row, (size, path) in enumerate(zip(sizes, paths, strict=True)):
        if size is None and path:
            check_name(path, f"{place}, row {row}, column {data.image_column!r}")
        elif size is None and not data.skip_broken:
            raise ValueError(
                f"{place}, row {row}: column {data.image_column!r} has no photo (null); put one there, or set "
                "data.skip_broken: true to go on without such rows"
            )
    id_column = data.image_id_column or find_column(list(dataset.features), "image_id")
    if id_column is not None:
        ids = column_of(dataset, "image_id_column", data.model_copy(update={"image_id_column": id_column}))
        doubt = _doubt(ids, sizes, paths, id_column)
        if doubt is None and data.image_id_column is not None:
            return [str(value) for value in ids], f"{id_column!r}"
        if doubt is None:
            return _one_id_per_image([str(value) for value in ids], images, sizes, paths, name, id_column)
        if data.image_id_column is not None:
            raise ValueError(f"{place}{doubt}")
    ids = [f"{name}/row {row}" if path is None else os.path.normpath(canonical(path)) for row, path in enumerate(paths)]
    if any(size is not None for size in sizes):
        for row, content in enumerate(_contents(images, name)):
            ids[row] = ids[row] if content is None else xxhash.xxh3_128_hexdigest(content)
    return ids, "path" if all(size is None for size in sizes) else "content"


def _one_id_per_image(
    ids: list[str], images: Dataset, sizes: list[int | None], paths: list[str | None], name: str, column: str
) -> tuple[list[str], str]:
    """The ids, the first one for an image that has several; and what tells images apart."""
    alike: dict[tuple, list[int]] = defaultdict(list)
    if any(size is not None for size in sizes):
        for row, content in enumerate(_contents(images, name)):
            if content is not None:
                alike[content.size, xxhash.xxh3_64_intdigest(memoryview(content)[-TAIL:])].append(row)
    for row, (size, path) in enumerate(zip(sizes, paths, strict=True)):
        if size is None and path is not None:
            alike[(os.path.normpath(canonical(path)),)].append(row)
    doubtful = sorted(row for rows in alike.values() if len({ids[row] for row in rows}) > 1 for row in rows)
    first: dict[str, str] = {}  # content or path -> id
    same: dict[str, str] = {}  # id -> id
    for row, content in zip(doubtful, _contents(images.select(doubtful), name), strict=True):
        content_or_path = (
            os.path.normpath(canonical(paths[row])) if content is None else xxhash.xxh3_128_hexdigest(content)
        )
        same[ids[row]] = first.setdefault(content_or_path, same.get(ids[row], ids[row]))
    several = any(own != other for own, other in same.items())
    return [same.get(own, own) for own in ids], f"{column!r} or content" if several else f"{column!r}"


def _sizes_and_paths(images: Dataset) -> tuple[list[int | None], list[str | None]]:
    """Bytes of every row's image (None: it is a file), and its path."""
    sizes: list[int | None] = []
    paths: list[str | None] = []
    for batch in images.with_format("arrow").iter(batch_size=1000):
        for chunk in batch["image"].chunks:
            sizes += pc.binary_length(chunk.field("bytes")).to_pylist()
            paths += chunk.field("path").to_pylist()
    return sizes, paths


def _contents(images: Dataset, name: str) -> Iterator[pa.Buffer | None]:
    """The bytes of every row, as a view of the data set's file."""
    with tqdm(total=len(images), desc=f"photos of {name}", leave=False, disable=None) as bar:
        for batch in images.with_format("arrow").iter(batch_size=BATCH):
            for chunk in batch["image"].chunks:
                yield from (content.as_buffer() for content in chunk.field("bytes"))
            bar.update(len(batch))


def _doubt(ids: list, sizes: list[int | None], paths: list[str | None], column: str) -> str | None:
    """Why a column does not tell images apart: an id is null, or rows with the same one have different images."""
    seen: dict[str, int] = {}
    for row, (value, size, path) in enumerate(zip(ids, sizes, paths, strict=True)):
        if value is None or not str(value).strip():
            return f", row {row}: column {column!r} names no photo"
        first = seen.setdefault(str(value), row)
        content_or_path, other = (path, paths[first]) if size is None else (size, sizes[first])
        if content_or_path != other and content_or_path is not None and other is not None:
            return (
                f": rows {first} and {row} have the same id {value!r} in column {column!r}, but different photos; name "
                "the column that tells photos apart with data.image_id_column"
            )
    return None
