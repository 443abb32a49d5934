"""An audit as tasks of Label Studio, with the verdict as prediction: https://labelstud.io/guide/tasks.

A finished project, exported as JSON, is a file of marks (`data/formats/label_studio.py`).
"""

import json
import os
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa

from clip_itm.auditing.rows import name_of, plain_rows
from clip_itm.data.formats.label_studio import CAPTION, MARK, PAIR, RIGHT, TEXT, WRONG

TASKS = 10_000  # per file: Label Studio advises against more than 100,000 in a project
PHOTO = "photo"
CONFIG = f"""<View>
  <Image name="{PHOTO}" value="$image"/>
  <Text name="{CAPTION}" value="${CAPTION}"/>
  <Choices name="{MARK}" toName="{PHOTO}" choice="single" required="true" showInline="true">
    <Choice value="{RIGHT}" hotkey="1"/>
    <Choice value="{WRONG}" hotkey="2"/>
  </Choices>
  <Header value="If it is wrong, a caption that is right:"/>
  <TextArea name="{TEXT}" toName="{PHOTO}" rows="2" maxSubmissions="1" editable="true"/>
</View>
"""
README = """Import the tasks into Label Studio, most suspicious first (tasks-0001.json):

1. Start it where it may read the photos:

   LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={root} label-studio start

2. Make a project. Settings, Labeling Interface, Code: paste labeling.xml.
3. Settings, Cloud Storage, Add Source Storage, Local files, with the absolute path
   {storages}
   Save it; do not sync it, which would make tasks of the files.
4. Import a tasks-*.json.
5. Export as JSON: that file is one of marks, as clip-itm audit takes them.
"""


def write_tasks(folder: Path, table: pa.Table, photos: list[str], threshold: float, judge: str) -> None:
    """Write `tasks-0001.json` and so on, in the order of the table, `labeling.xml` and `README.txt` into `folder`.

    photos: path of every image of the split [P]. threshold: a pair below it is predicted to be wrong. judge: whose
    predictions they are. The data of a task is its row of the table.
    """
    root, storages = _roots(photos)
    for number, start in enumerate(range(0, len(table), TASKS), 1):
        with (folder / f"tasks-{number:04d}.json").open("w", encoding="utf-8") as file:
            before = "[\n"
            for row in plain_rows(table.slice(start, TASKS)):
                path = photos[row.pop("photo_number")]
                file.write(before + json.dumps(_task(row, path, root, threshold, judge), ensure_ascii=False))
                before = ",\n"
            file.write("\n]\n")
    (folder / "labeling.xml").write_text(CONFIG, encoding="utf-8")
    text = README.format(root=root, storages="\n   ".join(storages))
    (folder / "README.txt").write_text(text, encoding="utf-8")


def _task(row: dict, path: str, root: str, threshold: float, judge: str) -> dict:
    probability = row["clean_probability"]
    is_right = probability >= threshold
    data = {name: value for name, value in row.items() if value is not None}
    address = f"/data/local-files/?d={quote(Path(os.path.relpath(path, root)).as_posix())}"
    choice = {
        "from_name": MARK,
        "to_name": PHOTO,
        "type": "choices",
        "value": {"choices": [RIGHT if is_right else WRONG]},
    }
    confidence = probability if is_right else 1 - probability
    return {
        "data": data | {"image": address, PAIR: name_of(row)},
        "predictions": [{"model_version": judge, "score": round(confidence, 6), "result": [choice]}],
    }


def _roots(photos: list[str]) -> tuple[str, list[str]]:
    """The document root, and the storages, which have to be below it."""
    common = Path(os.path.commonpath([os.path.dirname(path) for path in photos]))
    if common != common.parent:
        return str(common.parent), [str(common)]
    return str(common), sorted({str(common / Path(path).relative_to(common).parts[0]) for path in photos})
