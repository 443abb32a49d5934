"""What people said in Label Studio, exported as JSON, as lines of a file of marks."""

from collections.abc import Iterator
from typing import Any

# names in labeling.xml and in the data of a task, which `auditing/label_studio.py` writes
MARK, TEXT, CAPTION, PAIR = "mark", "text", "caption", "pair_hash"
RIGHT, WRONG = "right", "wrong"


def mark_lines(tasks: list[Any]) -> Iterator[dict[str, Any]]:
    """The content of a mark for every annotation, oldest first.

    A typed caption makes the mark "fixed", a skipped task makes it "skipped". Raises ValueError, naming the task, for
    tasks that no audit wrote.
    """
    found = []
    for number, task in enumerate(tasks, 1):
        data = task.get("data") if isinstance(task, dict) else None
        if not isinstance(data, dict) or PAIR not in data or not isinstance(task.get("annotations", []), list):
            raise ValueError(
                f"task {number} has no data.{PAIR}: expected the JSON export of a project made of the tasks that "
                "clip-itm audit wrote"
            )
        for annotation in task.get("annotations", []):
            if line := _line(data, annotation):
                found.append(line)
    yield from sorted(found, key=lambda line: line["time"])


def _line(data: dict[str, Any], annotation: dict[str, Any]) -> dict[str, Any] | None:
    values = {result.get("from_name"): result.get("value", {}) for result in annotation.get("result", [])}
    choice = next(iter(values.get(MARK, {}).get("choices", [])), None)
    typed = " ".join(" ".join(values.get(TEXT, {}).get("text", [])).split())
    if annotation.get("was_cancelled"):
        mark = "skipped"
    elif typed and choice != RIGHT:
        mark = "fixed"
    elif choice is None:
        return None
    else:
        mark = choice
    by = annotation.get("completed_by", "")
    return {
        "pair": data[PAIR],
        "mark": mark,
        "image_id": str(data.get("image_id", "")),
        "caption": str(data.get(CAPTION, "")),
        "text": typed if mark == "fixed" else None,
        "author": str(by.get("email", by.get("id", "")) if isinstance(by, dict) else by),
        "time": str(annotation.get("updated_at") or annotation.get("created_at") or ""),
    }
