"""Tables on the terminal, and in files and pipes, where rich would otherwise squeeze them into 80 columns.

Whatever is printed goes through `visible.py`: captions and file names are not markup, and cannot control the terminal.
"""

from collections.abc import Iterable, Sequence

import rich.console
from rich.table import Table
from rich.text import Text

from clip_itm.visible import visible


def cell(text: str) -> Text:
    """For a table of rich: nothing in it is markup or an emoji."""
    return Text(visible(text))


class Console(rich.console.Console):
    """A console that treats a closed pipe as any other command does."""

    def on_broken_pipe(self) -> None:
        """Unlike rich, which exits with status 1: the command ends like any that writes into a closed pipe."""
        raise BrokenPipeError


def print_table(table: Table) -> None:
    """Print a table, 140 columns wide in files and pipes."""
    console = Console()
    (console if console.is_terminal else Console(width=140)).print(table)


def print_facts(title: str, facts: Iterable[tuple[str, str]]) -> None:
    """Print a table of names and values."""
    table = Table(title=cell(title), title_justify="left", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(cell(name), cell(value))
    print_table(table)


def print_lines(title: str, lines: Iterable[Sequence[str]], left: Sequence[str] = ()) -> None:
    """Print a table of `lines`, the header first; columns are right-aligned except those in `left`."""
    header, *rows = lines
    table = Table(title=cell(title))
    for name in header:
        table.add_column(cell(name), justify="left" if name in left else "right")
    for row in rows:
        table.add_row(*map(cell, row))
    print_table(table)


def print_results(query: str, rows: Iterable[tuple[int, float, str]]) -> None:
    """Print what a search found: rank, score, and id or caption."""
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("rank", justify="right")
    table.add_column("score", justify="right")
    table.add_column(cell(query), overflow="fold")
    for rank, score, label in rows:
        table.add_row(str(rank), f"{score:.3f}", cell(label))
    print_table(table)
