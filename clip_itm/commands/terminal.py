"""Tables on the terminal, and in files and pipes, where rich would otherwise squeeze them into 80 columns."""

from collections.abc import Iterable

from rich.console import Console
from rich.markup import escape
from rich.table import Table


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
