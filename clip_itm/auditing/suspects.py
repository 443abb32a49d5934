"""Rows of an audit, to print."""

from typing import Any

from rich.table import Table
from rich.text import Text

from clip_itm.evaluation.report import as_text
from clip_itm.visible import visible


class Suspects(list[dict[str, Any]]):
    """Rows of an audit as dicts; printed as a table."""

    def __str__(self) -> str:
        table = Table()
        for name in ("rank", "clean probability", "photo", "caption", "known to be wrong"):
            table.add_column(name, overflow="fold")
        for row in self:
            wrong = {None: "", True: "yes", False: "no"}[row["known_wrong"]]
            place = row["image"] or row["image_id"]
            cells = (row["rank"], f"{row['clean_probability']:.3f}", place, row["caption"], wrong)
            table.add_row(*(Text(visible(str(value))) for value in cells))
        return as_text(table)

    __repr__ = __str__
