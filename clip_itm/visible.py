"""Untrusted text where people read it: captions, names of files and recipes are shown, never obeyed."""

import re
import sys
from typing import TextIO

# what moves a cursor, colours, ends a line, or turns the direction of what follows; and what is no text at all
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
MARKDOWN = re.compile(r"[\\`*<>|~$&]|\](?=[\[(])|(?<![^\W_])_|_(?![^\W_])")


def visible(text: str, kept: str = "") -> str:
    """`text` with control characters, changes of direction and lone surrogates as escapes, such as \\x1b and \\u202e.

    Characters in `kept` stay as they are: "\\n" if the text has several lines.
    """
    return CONTROL.sub(lambda found: found[0] if found[0] in kept else _escape(found[0]), str(text))


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


def say(text: str, file: TextIO | None = None) -> None:
    """Print lines that may contain names or text from a user."""
    print(visible(text, kept="\n"), file=file or sys.stdout, flush=True)


def counted(count: int, one: str, many: str = "") -> str:
    """A number with what it counts: `one` for 1, and else `many`, by default `one` with an s.

    >>> counted(1, "photo"), counted(2000, "photo"), counted(0, "photo is", "photos are")
    ('1 photo', '2,000 photos', '0 photos are')
    """
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def markdown(text: str) -> str:
    """`text` within a line or a cell of Markdown: no markup, no HTML, no end of the cell."""
    return MARKDOWN.sub(lambda found: f"\\{found[0]}", visible(text))


def code(text: str) -> str:
    """`text` as code within a line of Markdown; in a cell `|` would end it."""
    text = visible(text)
    ticks = fence(text, 1)
    padding = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{padding}{text}{padding}{ticks}"


def fence(text: str, fewest: int = 3) -> str:
    """More backticks in a row than `text` has anywhere: what is between two of these is code."""
    return "`" * max([fewest, *(len(run) + 1 for run in re.findall("`+", text))])
