"""Tables on the terminal, and in files and pipes, where rich would otherwise squeeze them into 80 columns.

Whatever is printed goes through `visible.py`: captions and names of files are no markup, and send the terminal nothing.
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
    def on_broken_pipe(self) -> None:
        """Not rich's own exit with status 1: the command ends as any that writes into a pipe which nobody reads."""
        raise BrokenPipeError


def print_table(table: Table) -> None:
    console = Console()
    (console if console.is_terminal else Console(width=140)).print(table)


def print_facts(title: str, facts: Iterable[tuple[str, str]]) -> None:
    """Names and values."""
    table = Table(title=cell(title), title_justify="left", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(cell(name), cell(value))
    print_table(table)


def print_lines(title: str, lines: Iterable[Sequence[str]], left: Sequence[str] = ()) -> None:
    """Cells, those of the header first; columns are aligned to the right but for those in `left`."""
    header, *rows = lines
    table = Table(title=cell(title))
    for name in header:
        table.add_column(cell(name), justify="left" if name in left else "right")
    for row in rows:
        table.add_row(*map(cell, row))
    print_table(table)


def print_results(query: str, rows: Iterable[tuple[int, float, str]]) -> None:
    """What a search found: rank, score, and id or caption."""
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("rank", justify="right")
    table.add_column("score", justify="right")
    table.add_column(cell(query), overflow="fold")
    for rank, score, label in rows:
        table.add_row(str(rank), f"{score:.3f}", cell(label))
    print_table(table)
