"""Annotation files: where they are, and their text: always UTF-8, with an error that names the file and the line."""

import json
from pathlib import Path
from typing import Any


def read_text(path: Path) -> str:
    """The content of a UTF-8 file, without the byte order mark that some editors put in front."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such file") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8; "
            "convert the file, for example with `iconv -f latin1 -t utf-8` or `iconv -f utf-16 -t utf-8`"
        ) from None


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file. Blank lines at the end do not count; one in between is an empty item."""
    # not splitlines(): captions may hold the rarer line separators of Unicode
    lines = [line.removesuffix("\r") for line in read_text(path).split("\n")]
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise ValueError(f"{path}: the file is empty")
    return lines


def read_json(path: Path) -> Any:
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: not valid JSON ({error.msg})") from None


def first_existing(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The first of `names` that exists in `folder`."""
    return next((folder / name for name in names if (folder / name).exists()), None)


def given_path(path: str, root: Path) -> Path:
    """A path of the recipe: below the root if it is there, else from the working directory."""
    given = Path(path).expanduser()
    return root / given if (root / given).exists() else given.absolute()


def existing_root(root: str) -> Path:
    """`data.root` as an absolute path."""
    path = Path(root).expanduser().absolute()
    if not path.is_dir():
        raise ValueError(f"data.root: there is no folder {path}")
    return path
