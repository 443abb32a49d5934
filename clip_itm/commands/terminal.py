"""Tables on the terminal, and in files and pipes, where rich would otherwise squeeze them into 80 columns."""

from rich.console import Console
from rich.table import Table


def print_table(table: Table) -> None:
    console = Console()
    (console if console.is_terminal else Console(width=140)).print(table)
