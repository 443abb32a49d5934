"""An audit as samples of FiftyOne: its FiftyOneImageClassificationDataset, a sample for every pair.

    import fiftyone as fo

    kind = fo.types.FiftyOneImageClassificationDataset
    where = {"dataset_dir": "audit/fiftyone", "data_path": "data.json"}
    dataset = fo.Dataset.from_dir(dataset_type=kind, label_field="audit", **where)
    dataset.match(fo.ViewField("audit.label") == "wrong").sort_by("audit.clean_probability")

The label is "wrong" or "right" with its confidence, and all columns of the table are attributes of the label:
https://docs.voxel51.com/user_guide/import_datasets.html
"""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from clip_itm.auditing.rows import plain_rows

RESERVED = ("id", "label", "confidence", "logits", "tags")  # of a label of FiftyOne


def write_samples(folder: Path, table: pa.Table, photos: list[str], threshold: float) -> None:
    """Write `data.json` (a path for each sample) and `labels.json` into `folder`; a sample is named by its pair's rank.

    photos: path of every image of the split [P]. threshold: a pair below it is called wrong.
    """
    digits = len(str(len(table)))
    with (
        (folder / "data.json").open("w", encoding="utf-8") as data,
        (folder / "labels.json").open("w", encoding="utf-8") as labels,
    ):
        before = "{\n", '{"classes": null, "labels": {\n'
        for number, row in enumerate(plain_rows(table), 1):
            name = f"{number:0{digits}d}"
            path = photos[row.pop("photo_number")]
            for file, lead, value in zip((data, labels), before, (path, _label(row, threshold)), strict=True):
                file.write(f"{lead}{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}")
            before = ",\n", ",\n"
        data.write("\n}\n")
        labels.write("\n}}\n")


def _label(row: dict[str, Any], threshold: float) -> dict[str, Any]:
    probability = row["clean_probability"]
    is_right = probability >= threshold
    return {
        "label": "right" if is_right else "wrong",
        "confidence": round(probability if is_right else 1 - probability, 6),
        "attributes": {
            f"{name}_" if name in RESERVED else name: value for name, value in row.items() if value is not None
        },
    }
