"""Any data set of the Hub, or one written by `save_to_disk`: columns are mapped, images stay where they are.

No builder is needed: `datasets` has the rows in Arrow already, and only the small text columns are built anew next to
the untouched image column. Rows of the same image are one image, wherever they are: `sources/hub_images.py`.
"""

from pathlib import Path

import datasets
import pyarrow as pa
from datasets import Dataset, DatasetDict, Features

from clip_itm.data.configuration import HubData
from clip_itm.data.formats.annotation_files import BrokenRow
from clip_itm.data.formats.cells import captions_of
from clip_itm.data.formats.name_spelling import found_on_disk
from clip_itm.data.formats.splits import ALIASES, hashed_splits, split_name
from clip_itm.data.rows import ROW_FEATURES, Split
from clip_itm.data.sources.hub_images import column_of, image_ids_of, images_of
from clip_itm.visible import counted


def load(data: HubData, given: Dataset | DatasetDict | None = None) -> dict[str, Split]:
    """Splits: as `data.splits` maps them, by `split_column`, by a hash if there is only one split, or by name.

    `given`: the data set, if it is in memory already.
    """
    loaded = _load(data) if given is None else _as_dict(given)
    try:
        return {name: Split(name, found_on_disk(rows)) for name, rows in _splits(loaded, data).items()}
    except pa.ArrowException as error:
        raise ValueError(f"{data.path}: the data set cannot be read ({str(error).splitlines()[0]})") from error


def load_one(data: HubData, given: Dataset, name: str) -> Split:
    """All of a data set in memory as one split."""
    return Split(name, found_on_disk(_to_rows(given, data, name)[0]))


def _as_dict(loaded: Dataset | DatasetDict) -> DatasetDict:
    return loaded if isinstance(loaded, DatasetDict) else DatasetDict({"train": loaded})


def _splits(loaded: DatasetDict, data: HubData) -> dict[str, Dataset]:
    if data.splits is not None:
        if unknown := sorted(set(data.splits.values()) - set(loaded)):
            raise ValueError(f"{data.path}: data.splits names {unknown}, but the splits are {sorted(loaded)}")
        return {split: _to_rows(loaded[name], data, name)[0] for split, name in data.splits.items()}
    if data.split_column is not None or len(loaded) == 1:
        name = "+".join(loaded)
        return _divide(datasets.concatenate_datasets(list(loaded.values())), data, name)
    parts: dict[str, list[str]] = {}
    for name in loaded:
        if name.lower() in ALIASES:
            parts.setdefault(ALIASES[name.lower()], []).append(name)
    if "train" not in parts:
        raise ValueError(f"{data.path}: no split is called train ({sorted(loaded)}); map them with data.splits")
    return {
        split: _to_rows(datasets.concatenate_datasets([loaded[name] for name in names]), data, "+".join(names))[0]
        for split, names in parts.items()
    }


def _load(data: HubData) -> DatasetDict:
    folder = Path(data.path).expanduser()
    if not folder.exists() and (folder.is_absolute() or data.path.startswith((".", "~")) or data.path.count("/") > 1):
        raise ValueError(f"data.path: there is no folder {folder}, and no data set of the Hub has such a name")
    try:
        if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
            loaded = datasets.load_from_disk(str(folder))
        elif folder.is_dir() and set("[]*?") & set(str(folder.absolute())):
            raise ValueError(
                "its path has one of [ ] * ? in it, which `datasets` takes for a pattern; rename the folder"
            )
        else:
            loaded = datasets.load_dataset(data.path, data.name, revision=data.revision)
    except Exception as error:  # from a dozen libraries below
        raise ValueError(f"{data.path}: the data set cannot be loaded ({error})") from error
    return _as_dict(loaded)


def _divide(dataset: Dataset, data: HubData, name: str) -> dict[str, Dataset]:
    rows, owner = _to_rows(dataset, data, name)
    image_ids = rows["image_id"][:]
    if data.split_column is not None:
        where = f"{data.path}, row %d, column {data.split_column!r}"
        found = [split_name(cell, where % row) for row, cell in enumerate(column_of(dataset, "split_column", data))]
        first_rows: dict[int, int] = {}
        for row, image in enumerate(owner):
            first = first_rows.setdefault(image, row)
            if found[row] != found[first]:
                raise ValueError(
                    f"{where % row}: photo {image_ids[image]} is in split {found[row]}, but in row {first} it is in "
                    f"{found[first]}"
                )
        splits = [found[row] for row in first_rows.values()]
    else:
        hashed = hashed_splits(image_ids, data)
        splits = [hashed[image_id] for image_id in image_ids]
    return {
        split: rows.select([row for row, own in enumerate(splits) if own == split]) for split in sorted(set(splits))
    }


def _to_rows(dataset: Dataset, data: HubData, name: str) -> tuple[Dataset, list[int]]:
    """ROW_FEATURES, one row per image in the order of their first rows; and the image [rows] of every given row."""
    cells = column_of(dataset, "caption_column", data)
    images = images_of(dataset, data, name)
    image_ids, by = image_ids_of(dataset, images, data, name)
    firsts: dict[str, int] = {}
    for row, image_id in enumerate(image_ids):
        firsts.setdefault(image_id, row)
    rows_of = {image_id: number for number, image_id in enumerate(firsts)}
    captions: list[list[str]] = [[] for _ in image_ids]
    caption_ids: list[list[str]] = [[] for _ in image_ids]
    for row, image_id in enumerate(image_ids):
        found = _captions(cells[row], data, f"{data.path}, split {name}, row {row}, column {data.caption_column!r}")
        captions[firsts[image_id]] += [caption.strip() for caption in found]
        caption_ids[firsts[image_id]] += [f"{name}:{row}:{number}" for number in range(len(found))]
    columns = {"image_id": image_ids, "captions": captions, "caption_ids": caption_ids}
    texts = Dataset.from_dict(columns, features=Features({key: ROW_FEATURES[key] for key in columns}))
    # rows are chosen after the columns are joined: joining would copy the images of chosen rows
    rows = datasets.concatenate_datasets([images, texts], axis=1)
    rows.info.description = ""  # the Hub's text about the data set is not one of our notes
    if len(firsts) < len(rows):
        rows = rows.select(list(firsts.values()))
        rows.info.description = (
            f"split {name}: {counted(len(image_ids), 'row is', 'rows are')} "
            f"{counted(len(firsts), 'photo')} (the same {by} is one photo)"
        )
    return rows, [rows_of[image_id] for image_id in image_ids]


def _captions(cell: object, data: HubData, where: str) -> list[str]:
    try:
        return captions_of(cell, where)
    except BrokenRow:
        if not data.skip_broken:
            raise
        return [""]
