"""The checkpoints in the folder of a run: which are complete, which is the last, which may be deleted."""

import json
import re
from pathlib import Path

from clip_itm.checksums import read_checksums
from clip_itm.files import clear_temporary
from clip_itm.training.folder import PREPARED, RESULTS, STATE, delete, own_files, remove_empty

CHECKPOINT = re.compile(r"checkpoint-(0|[1-9][0-9]*)")


def checkpoints(run: Path) -> list[Path]:
    """Folders called checkpoint-<step>, sorted by step; not others, such as checkpoint-18-old."""
    if not run.is_dir():
        return []
    found = [path for path in run.iterdir() if CHECKPOINT.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end: it has the trainer's state and (unless of an old version) checksums.

    Later damage is found when the checkpoint is read (`check_files`).
    """
    if not (checkpoint / STATE).is_file():
        return False
    try:
        content = read_checksums(checkpoint)
    except ValueError:
        return True
    if content is not None:
        return STATE in content["files"]
    try:
        return isinstance(json.loads((checkpoint / STATE).read_text(encoding="utf-8")), dict)
    except (OSError, ValueError, RecursionError):
        return False


def last_complete_checkpoint(run: Path) -> Path | None:
    """The complete checkpoint with the highest step, or None."""
    return next((path for path in reversed(checkpoints(run)) if is_complete(path)), None)


def holds_work(run: Path) -> bool:
    """Whether anything in the folder would be lost: results, a checkpoint, or what was worked out before training."""
    return (run / RESULTS).is_file() or last_complete_checkpoint(run) is not None or bool(prepared(run))


def prepared(run: Path) -> list[str]:
    """Files that the run's method worked out before training, relative to the run."""
    return [name for name in own_files(run) if name.startswith(f"{PREPARED}/")] if (run / PREPARED).is_dir() else []


def clear_half_written(run: Path) -> None:
    """Delete what killed processes left: temporary files and incomplete checkpoints."""
    clear_temporary(run)
    half = [path.name for path in checkpoints(run) if not is_complete(path)]
    delete(run, [name for name in own_files(run) if name.split("/")[0] in half])
    for name in half:
        remove_empty(run / name)


def rotate(run: Path, best: int | None, limit: int = 2) -> None:
    """Keep `limit` of the run's checkpoints: the newest and the best, then others by step, as clocks may go back."""
    own = own_files(run)
    mine = [path.name for path in checkpoints(run) if f"{path.name}/{STATE}" in own]
    first = sorted(mine, key=lambda name: (name in (mine[-1], f"checkpoint-{best}"), mine.index(name)))
    for name in first[:-limit]:
        delete(run, [file for file in own if file.startswith(f"{name}/")])
