"""Tables on the terminal, and in files and pipes, where rich would otherwise squeeze them into 80 columns."""

from collections.abc import Iterable

import rich.console
from rich.markup import escape
from rich.table import Table


class Console(rich.console.Console):
    def on_broken_pipe(self) -> None:
        """Not rich's own exit with status 1: the command ends as any that writes into a pipe which nobody reads."""
        raise BrokenPipeError


def print_table(table: Table) -> None:
    console = Console()
    (console if console.is_terminal else Console(width=140)).print(table)


def print_facts(title: str, facts: Iterable[tuple[str, str]]) -> None:
    """Names and values, taken as they are: nothing in them is markup."""
    table = Table(title=escape(title), title_justify="left", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(escape(name), escape(value))
    print_table(table)


def print_results(query: str, rows: Iterable[tuple[int, float, str]]) -> None:
    """What a search found: rank, score, and id or caption."""
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("rank", justify="right")
    table.add_column("score", justify="right")
    table.add_column(escape(query), overflow="fold")
    for rank, score, label in rows:
        table.add_row(str(rank), f"{score:.3f}", escape(label))
    print_table(table)
