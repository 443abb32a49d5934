"""The one boundary for reading a user's file: whatever fails becomes a sentence that names the file.

Files that are damaged, truncated or of another kind make libraries raise almost anything, in words for programmers and
sometimes with the advice to execute the file. None of that gets through.
"""

import json
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REMEDY = "restore it from a copy, or make it again"
LONGEST_REASON = 300  # characters


@contextmanager
def reading(path: str | Path, what: str, remedy: str = REMEDY) -> Iterator[None]:
    """A block that reads the file `path`, which should be `what` ("an image", "the results of a run").

    Every error becomes a ValueError that names `path` and ends with `remedy`; a ValueError that already names it passes
    unchanged.

    Example:
        >>> with reading("answers.json", "a JSON file"):
        ...     json.loads("{")
        Traceback (most recent call last):
        ValueError: answers.json is not a JSON file, or it is damaged (line 1: not valid JSON: Expecting ...
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        raise ValueError(told(path, what, error, remedy)) from error


def told(path: str | Path, what: str, error: Exception, remedy: str = REMEDY) -> str:
    """The sentence for an error in reading `path`, which should be `what`."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return f"{path}: there is no such file; expected {what}"
    if isinstance(error, OSError) and error.strerror:
        return f"{path}: cannot be read ({error.strerror.lower()}); expected {what}"
    return f"{path} is not {what}, or it is damaged ({reason(error)}); {remedy}"


def reason(error: Exception) -> str:
    """What an error says, on one line, without control characters and without any advice to unpickle a file."""
    text = str(error)
    if isinstance(error, pickle.UnpicklingError) or "pickle" in text.lower() or "weights_only" in text:
        asked = re.search(r"GLOBAL ([\w.]+)", text)
        return f"it asks to execute {asked[1]}, which was not done" if asked else "pickled objects are never loaded"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return f"line {error.lineno}: not valid JSON: {error.msg}"
    if isinstance(error, KeyError):
        return f"it has no {error.args[0]!r}" if error.args else "something is missing in it"
    line = "".join(letter if letter.isprintable() else " " for letter in " ".join(text.split()))
    line = line or type(error).__name__
    return line if len(line) <= LONGEST_REASON else f"{line[:LONGEST_REASON]} ..."


def read_json(path: str | Path, what: str, keys: tuple[str, ...] = (), remedy: str = REMEDY) -> dict[str, Any]:
    """The mapping in a JSON file (UTF-8), which must have `keys`; for errors see `reading`."""
    with reading(path, what, remedy):
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        if not isinstance(content, dict):
            raise TypeError(f"a {type(content).__name__} in place of a mapping")
        for key in keys:
            content[key]
    return content


def load_tensors(path: str | Path, what: str) -> dict:
    """The tensors of a safetensors file, by name; for errors see `reading`."""
    from safetensors.torch import load_file

    with reading(path, what):
        return load_file(path)
