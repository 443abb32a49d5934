"""Any data set of the Hub, or one written by `save_to_disk`: columns are mapped, photos stay where they are.

No builder is needed: `datasets` has the rows in Arrow already, and only the small text columns are built anew beside
the untouched image column.
"""

from itertools import groupby
from pathlib import Path

import datasets
from datasets import Dataset, DatasetDict, Image, Value

from clip_itm.data.configuration import HubData
from clip_itm.data.folder import captions_of
from clip_itm.data.rows import ROW_FEATURES
from clip_itm.data.splits import ALIASES, hash_split, split_name


def load_hub(data: HubData) -> dict[str, Dataset]:
    """Rows by split: as `data.splits` maps them, by `split_column`, by a hash where there is one split, or by name."""
    loaded = _load(data)
    if data.splits is not None:
        if unknown := sorted(set(data.splits.values()) - set(loaded)):
            raise ValueError(f"{data.path}: data.splits names {unknown}, but the splits are {sorted(loaded)}")
        return {split: _to_rows(loaded[name], data, name)[0] for split, name in data.splits.items()}
    if data.split_column is not None or len(loaded) == 1:
        name = "+".join(loaded)
        return _divide(datasets.concatenate_datasets(list(loaded.values())), data, name)
    parts: dict[str, list[Dataset]] = {}
    for name, dataset in loaded.items():
        if name.lower() in ALIASES:
            parts.setdefault(ALIASES[name.lower()], []).append(_to_rows(dataset, data, name)[0])
    if "train" not in parts:
        raise ValueError(f"{data.path}: no split is called train ({sorted(loaded)}); map them with data.splits")
    return {split: datasets.concatenate_datasets(rows) for split, rows in parts.items()}


def _load(data: HubData) -> DatasetDict:
    folder = Path(data.path).expanduser()
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        loaded = datasets.load_from_disk(str(folder))
    else:
        loaded = datasets.load_dataset(data.path, data.name, revision=data.revision)
    return loaded if isinstance(loaded, DatasetDict) else DatasetDict({"train": loaded})


def _divide(dataset: Dataset, data: HubData, name: str) -> dict[str, Dataset]:
    rows, firsts = _to_rows(dataset, data, name)
    if data.split_column is not None:
        cells = _column(dataset, "split_column", data)
        splits = [split_name(cells[row], f"{data.path}, row {row}, column {data.split_column!r}") for row in firsts]
    else:
        shares = data.split_seed, data.val_fraction, data.test_fraction
        splits = [hash_split(image_id, *shares) for image_id in rows["image_id"][:]]
    return {
        split: rows.select([row for row, own in enumerate(splits) if own == split]) for split in sorted(set(splits))
    }


def _to_rows(dataset: Dataset, data: HubData, name: str) -> tuple[Dataset, list[int]]:
    """ROW_FEATURES, and the original row of every photo; neighbouring rows with the same photo id are one photo."""
    cells = _column(dataset, "caption_column", data)
    firsts = list(range(len(dataset)))
    image_ids = [f"{name}/{row}" for row in firsts]
    if data.image_id_column is not None:
        image_ids = [str(value) for value in _column(dataset, "image_id_column", data)]
        firsts = [next(run)[0] for _, run in groupby(enumerate(image_ids), key=lambda item: item[1])]
    captions: list[list[str]] = [[] for _ in range(len(dataset))]
    caption_ids: list[list[str]] = [[] for _ in range(len(dataset))]
    for first, end in zip(firsts, [*firsts[1:], len(dataset)], strict=True):
        for row in range(first, end):
            found = captions_of(cells[row], f"{data.path}, split {name}, row {row}")
            captions[first] += [caption.strip() for caption in found]
            caption_ids[first] += [f"{name}:{row}:{number}" for number in range(len(found))]
    columns = {"image_id": image_ids, "captions": captions, "caption_ids": caption_ids}
    texts = Dataset.from_dict(columns, features=datasets.Features({key: ROW_FEATURES[key] for key in columns}))
    # rows are chosen after the columns are joined: joining would copy the photos of chosen rows
    rows = datasets.concatenate_datasets([_images(dataset, data), texts], axis=1)
    rows.info.description = ""  # the Hub's text about the data set is no note of ours
    return rows.select(firsts) if len(firsts) < len(rows) else rows, firsts


def _images(dataset: Dataset, data: HubData) -> Dataset:
    if not isinstance(dataset.features.get(data.image_column), Image | Value):
        raise ValueError(
            f"{data.path}: data.image_column {data.image_column!r} is no column of images or paths; "
            f"the columns are {', '.join(dataset.features)}"
        )
    images = dataset.select_columns([data.image_column])
    if data.image_column != "image":
        images = images.rename_column(data.image_column, "image")
    return images.cast_column("image", Image(decode=False))


def _column(dataset: Dataset, key: str, data: HubData) -> list:
    """The values of the column that the recipe names under `key`."""
    column = getattr(data, key)
    if column not in dataset.features:
        raise ValueError(
            f"{data.path}: no column {column!r} (data.{key}); the columns are {', '.join(dataset.features)}"
        )
    return dataset.select_columns([column]).with_format(None)[column][:]
