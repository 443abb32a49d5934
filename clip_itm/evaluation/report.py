"""Results as a table for the terminal, and as Markdown.

A row of a table is a label and a result as plain data: `RetrievalResult.as_dict()`, or the same read back from JSON.
"""

import io
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from clip_itm.visible import counted, markdown, visible

Row = tuple[str, Mapping]
# With fewer, the 95 % interval of a recall of 50 % is wider than 40 to 60 %, and at least one query in ten has its
# answer among the first ten images by chance.
FEWEST_IMAGES = 100
TEXT_WIDTH = 140  # characters
METRIC_NAMES = {"r1": "R@1", "r5": "R@5", "r10": "R@10", "map_at_r": "mAP@R", "rprecision": "R-Precision"}
HEADERS = {
    f"{direction}_{metric}": f"{direction} {name}" if metric == "r1" else name
    for direction in ("i2t", "t2i")
    for metric, name in METRIC_NAMES.items()
} | {"rsum": "rsum"}


def terminal_table(rows: Sequence[Row], title: str | None = None, intervals: bool = True) -> Table:
    """A table for `rich.console.Console().print`: one row per method, 95 % intervals below the values.

    Example:
        >>> import torch
        >>> from rich.console import Console
        >>> from clip_itm.evaluation.protocols import evaluate_retrieval
        >>> result = evaluate_retrieval(torch.eye(3), torch.eye(3), torch.arange(3), bootstrap=0)["all"]
        >>> Console().print(terminal_table([("CLIP", result.as_dict())]))  # doctest: +ELLIPSIS
        ┏━━━━━━━━┳...
    """
    with_protocol, columns = protocols_differ(rows), columns_of(result["metrics"] for _, result in rows)
    table = Table(
        title=title and Text(visible(title)),
        title_justify="left",
        caption=Text(visible(footnote(rows))),
        caption_justify="left",
    )
    table.add_column("method")
    if with_protocol:
        table.add_column("protocol")
    for name in columns:
        table.add_column(HEADERS[name], justify="right")
    for label, result in rows:
        cells = [
            Text.assemble(value, "\n", (spread, "dim")) if spread else value
            for value, spread in metric_cells(result, columns, intervals)
        ]
        table.add_row(Text(visible(label)), *([Text(visible(result["protocol"]))] if with_protocol else []), *cells)
    return table


def as_text(table: Table) -> str:
    """A table as it is printed without a terminal."""
    file = io.StringIO()
    Console(file=file, width=TEXT_WIDTH).print(table)
    return file.getvalue().rstrip("\n")


def markdown_table(rows: Sequence[Row], intervals: bool = True) -> str:
    """A table in GitHub's Markdown, for model cards and READMEs: one row per method; ends with a newline.

    Example:
        >>> import torch
        >>> from clip_itm.evaluation.protocols import evaluate_retrieval
        >>> result = evaluate_retrieval(torch.eye(3), torch.eye(3), torch.arange(3), bootstrap=0)["all"]
        >>> print(markdown_table([("CLIP", result.as_dict())]))
        | method | i2t R@1 | R@5 | R@10 | t2i R@1 | R@5 | R@10 | rsum |
        | :-- | --: | --: | --: | --: | --: | --: | --: |
        | CLIP | 100.0 | 100.0 | 100.0 | 100.0 | 100.0 | 100.0 | 600.0 |
        <BLANKLINE>
        all: 3 photos, 3 captions; rsum: the six recalls added up, at most 600.
        <BLANKLINE>
    """
    with_protocol, columns = protocols_differ(rows), columns_of(result["metrics"] for _, result in rows)
    left = ["method", "protocol"] if with_protocol else ["method"]
    lines = [left + [HEADERS[name] for name in columns], [":--"] * len(left) + ["--:"] * len(columns)]
    for label, result in rows:
        cells = [
            f"{value} ({spread})" if spread else value for value, spread in metric_cells(result, columns, intervals)
        ]
        lines.append([markdown(label), *([markdown(result["protocol"])] if with_protocol else []), *cells])
    table = "".join("| " + " | ".join(line) + " |\n" for line in lines)
    return f"{table}\n{markdown(footnote(rows))}\n"


def columns_of(metrics: Iterable[Mapping]) -> list[str]:
    """The metrics that any row of a table has, in the order of the columns."""
    known = set().union(*metrics)
    return [name for name in HEADERS if name in known]


def metric_cells(result: Mapping, columns: Sequence[str], intervals: bool) -> list[tuple[str, str]]:
    """(value, interval or "") of each column, with one decimal; a dash for a metric that the protocol does not have."""
    metrics, spreads = result["metrics"], result["intervals"] if intervals else {}
    return [
        (
            f"{metrics[name]:.1f}" if name in metrics else "-",
            "{:.1f}–{:.1f}".format(*spreads[name]) if name in spreads else "",
        )
        for name in columns
    ]


def has_too_few(result: Mapping) -> bool:
    """Whether there were too few images to tell models apart."""
    return result["images"] < FEWEST_IMAGES


def too_few(split: str, num_images: int) -> str:
    """The warning about a split with fewer than `FEWEST_IMAGES` images."""
    reach, chance = min(98 / num_images**0.5, 50), min(1000 / num_images, 100)
    return (
        f"split {split} has {counted(num_images, 'photo')}, too few to tell models apart: a recall of 50 % is "
        f"uncertain by {reach:.0f} points either way, and R@10 is {chance:.0f} % by chance (expected: at least "
        f"{FEWEST_IMAGES} photos)"
    )


def protocols_differ(rows: Sequence[Row]) -> bool:
    """Whether the table needs a column for the protocol."""
    return len({result["protocol"] for _, result in rows}) > 1


def footnote(rows: Sequence[Row]) -> str:
    """What was ranked against what, what the intervals are, and how much depends on ties."""
    sizes = dict.fromkeys((r["protocol"], r["images"], r["captions"], len(r["folds"])) for _, r in rows)
    parts = [
        f"{protocol}: {counted(images, 'photo')}, {counted(captions, 'caption')}"
        + (f", mean of {folds} folds" if folds else "")
        for protocol, images, captions, folds in sizes
    ]
    if any("rsum" in result["metrics"] for _, result in rows):
        parts.append("rsum: the six recalls added up, at most 600")
    if drawn := [result["bootstrap"] for _, result in rows if result["intervals"]]:
        parts.append(f"ranges: {drawn[0]['level']} % bootstrap intervals over photos")
    gap = max((result["tie_gap"].get("rsum", 0.0) for _, result in rows), default=0.0)
    if gap >= 0.005:
        parts.append(f"ties count as won; lost, they would cost up to {gap:.2f} rsum")
    return "; ".join(parts) + "."
