"""Annotation files: where they are, and their text, always UTF-8; errors name the file and the line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn


class BrokenRow(ValueError):
    """A row of a readable table that cannot be used: an error, unless `data.skip_broken` leaves it out."""


def read_text(path: Path) -> str:
    """The content of a UTF-8 file, without a byte order mark; ValueError if it is missing or not UTF-8."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such file") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        is_utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
        how = "which is UTF-16, with" if is_utf16 else "for example with `iconv -f latin1 -t utf-8` or"
        raise ValueError(
            f"{path}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8; "
            f"convert the file, {how} `iconv -f utf-16 -t utf-8`"
        ) from None
    if (place := text.find("\0")) >= 0:
        line = text.count("\n", 0, place) + 1
        raise ValueError(
            f"{path}, line {line}: a zero byte, which no text has; the file is damaged, or is UTF-16 without its mark "
            "(convert it: `iconv -f utf-16le -t utf-8`)"
        )
    return text


def split_lines(text: str) -> tuple[list[str], str]:
    """The lines, and the separator between them; a carriage return stays at the end of its line.

    Lines end with LF or CRLF, or with CR in a file without LF (Macs of the last century). A CR elsewhere is text, and
    so are the rarer line separators of Unicode, which captions may contain.
    """
    end = "\r" if "\n" not in text and "\r" in text else "\n"
    return text.split(end), end


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file. Blank lines at the end are dropped; one in between is an empty item.

    Raises ValueError for a file that is missing, empty or not UTF-8.
    """
    lines = [line.removesuffix("\r") for line in split_lines(read_text(path))[0]]
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise ValueError(f"{path}: the file is empty")
    return lines


def written_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number, line) of the lines that are not blank."""
    return ((number, line) for number, line in enumerate(read_lines(path), start=1) if line.strip())


def parse_json(text: str, path: Path, line: int = 1, **options) -> Any:
    """Parse JSON that begins at `line` of the file `path`; ValueError with file and line if it cannot be read."""
    try:
        return json.loads(text, **options)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {line + error.lineno - 1}: not valid JSON ({error.msg})") from None
    except RecursionError:
        raise ValueError(f"{path}, line {line}: JSON that is nested too deeply to be read") from None
    except ValueError as error:  # an integer with thousands of digits
        raise ValueError(f"{path}, line {line}: JSON that cannot be read ({str(error).partition(';')[0]})") from None


def read_json(path: Path) -> Any:
    """The content of a JSON file; ValueError with file and line if it cannot be read."""
    return parse_json(read_text(path), path)


def check_text(text: str, where: str) -> str:
    """The text, if it can be written as UTF-8; BrokenRow if a JSON escape left half a character in it."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BrokenRow(
                f"{where}: {text[error.start]!r} is half of a character (a lone surrogate): {text[:80]!r}; "
                "write the whole character, or remove it"
            ) from None
    return text


def refuse_url(name: str, where: str) -> NoReturn:
    """Raise the ValueError for a URL in place of a file; `where` is the row it was read from."""
    raise ValueError(
        f"{where}: {name[:80]!r} is a URL, and photos are read from files. Download them first, for example with "
        "img2dataset (--output_format files), and write the paths of its files, such as 00000/000000000.jpg, "
        "in place of the URLs"
    )


def first_existing(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The first of `names` that exists in `folder`, as a path; None if there is none."""
    return next((folder / name for name in names if (folder / name).exists()), None)


def given_path(path: str, root: Path) -> Path:
    """A path of the recipe: below the root if it exists there, otherwise relative to the working directory."""
    given = Path(path).expanduser()
    return root / given if (root / given).exists() else given.absolute()


def existing_root(root: str) -> Path:
    """`data.root` as an absolute path; ValueError if there is no such folder."""
    path = Path(root).expanduser().absolute()
    if not path.is_dir():
        raise ValueError(f"data.root: there is no folder {path}; say where the data are, with --data.root FOLDER")
    return path
