"""Files written whole or not at all."""

import json
import os
import shutil
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary name beside `path`, with its suffix, to write to; renamed to `path` at the end.

    So no reader ever sees half a file. Folders are made; what an error left behind is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.{threading.get_ident()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content) -> None:
    """Plain data; not-a-number is refused (ValueError), because it is no JSON."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def save_arrays(path: str | Path, **arrays) -> None:
    """A compressed npz without pickle."""
    import numpy as np

    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


@contextmanager
def reading_arrays(path: str | Path, missing: str, wrong: str) -> Iterator[dict]:
    """The arrays of an npz, by name; nothing is unpickled.

    Whatever shows that the file is another one, here or where the arrays are made use of, is told as a ValueError:
    `missing` where there is no file, else `wrong` with the error in the place of {error}.
    """
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as arrays:
            stored = {name: arrays[name] for name in arrays.files}
        yield stored
    except FileNotFoundError:
        raise ValueError(missing) from None
    except (OSError, ValueError, TypeError, AttributeError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(wrong.replace("{error}", str(error))) from error


def is_free(folder: Path) -> bool:
    """Whether a folder can be filled without touching anything of anybody's: it is not there, or it is empty."""
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


@contextmanager
def filling(folder: str | Path) -> Iterator[Path]:
    """A temporary folder beside `folder` to write to; renamed to `folder` at the end, removed after an error.

    Raises ValueError where `folder` exists and is not empty.
    """
    folder = Path(folder)
    if not is_free(folder):
        raise ValueError(f"{folder} exists and is not empty: choose another folder, or delete it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    temporary.mkdir()
    try:
        yield temporary
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def model_folder(place: str | Path) -> Path:
    """The saved model of a run (its best/), or `place` where that is a model itself."""
    place = Path(place)
    for folder in (place / "best", place):
        if (folder / "config.json").is_file():
            return folder
    if (place / "recipe.yaml").is_file():
        raise ValueError(f"{place}: this run is not finished (it has no best/): train it to its end")
    raise ValueError(f"{place}: no config.json in it, so it is no model; expected a run folder or a saved model")
