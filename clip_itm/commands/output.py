"""Files and folders that a command is asked to write: checked before anything is computed; "-" is standard output."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from clip_itm.files import require_free_name


class OutputFile(str):
    """Type of an argument that names a file to write, instead of `str`."""


class OutputFolder(str):
    """Type of an argument that names a folder to write."""


@contextmanager
def outputs_of(args: argparse.Namespace) -> Iterator[None]:
    """The context of a command: if a file goes to standard output, everything else that is printed goes to stderr.

    Raises ValueError for a folder in the way of a file, a file in the way of a folder, and two files for one output.
    """
    values = [value for value in vars(args).values() if isinstance(value, OutputFile | OutputFolder)]
    for value in values:
        if value != "-":
            require_free_name(Path(value), is_folder=isinstance(value, OutputFolder))
        elif isinstance(value, OutputFolder):
            raise ValueError("a folder cannot be written to standard output (-): give it a name, such as ./out")
    match values.count("-"):
        case 0:
            yield
        case 1:
            with redirect_stdout(sys.stderr):
                yield
        case _:
            raise ValueError("only one file can be written to standard output (-): name the others")
