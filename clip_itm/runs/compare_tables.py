"""The tables of a comparison: recall, wrong pairs found, cost; each as lines of cells, the header first."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import mean

from clip_itm.evaluation.report import HEADERS, columns_of
from clip_itm.files import write_json, write_text
from clip_itm.runs.compare import STAGES, TABLE, Cell, noise_label
from clip_itm.visible import counted
from clip_itm.visible import markdown as plain

NONE = "-"
FOUND = (
    "wrong training pairs found (share: true, and found with its 95 % interval; precision: among as many suspects as "
    "pairs are wrong; ECE: calibration error)"
)
COST = "cost (seconds of training, with its evaluations, and in runs of {first}; - where a run was interrupted)"


def table_lines(rows: Sequence[dict], stage: str) -> list[list[str]]:
    """Recall at one stage, `12.3 ± 0.4` if there are several seeds."""
    levels = list(dict.fromkeys(row["level"] for row in rows))
    rows = sorted(
        (row for row in rows if row["stage"] == stage), key=lambda row: (levels.index(row["level"]), row["noise"])
    )
    columns = columns_of(rows)
    lines = [["noise", "method", *(HEADERS[name] for name in columns), "seeds"]]
    compared = any("rsum_difference" in row for row in rows)
    if compared:
        lines[0].append(f"rsum against {rows[0]['method']} [95 %]")
    for row in rows:
        metrics_row = [
            f"{row[name]:.1f}" + (f" ± {row[f'{name}_std']:.1f}" if row["seeds"] > 1 else "") for name in columns
        ]
        lines.append([noise_label(row["level"], row["noise"]), row["method"], *metrics_row, str(row["seeds"])])
        if compared:
            difference = row.get("rsum_difference")
            lines[-1].append("{:+.1f} [{:+.1f}, {:+.1f}]".format(*difference) if difference else "")
    return lines


def detection_lines(cells: Sequence[Cell]) -> list[list[str]]:
    """How many wrong training pairs each method finds, and how well, if it estimates that while it trains; means over
    seeds."""
    lines = [["noise", "method", "share true", "share found [95 %]", "AUC", "precision", "ECE", "seeds"]]
    for noise, method, group in _groups(cells):
        told = [cell.results for cell in group if cell.results.get("wrong_pairs") or cell.results.get("wrong_share")]
        if not told:
            continue
        shares, pairs = ([results.get(key) or {} for results in told] for key in ("wrong_share", "wrong_pairs"))
        found, low, high = (_mean(shares, key) for key in ("share", "low", "high"))
        found = found if low == NONE else f"{found} [{low}, {high}]"
        lines.append([noise, method, _mean(shares, "true"), found])
        lines[-1] += [*(_mean(pairs, key) for key in ("auc", "precision", "ece")), str(len(told))]
    return lines


def cost_lines(cells: Sequence[Cell]) -> list[list[str]]:
    """Seconds per run, also in runs of the first method with the same noise; means over seeds."""
    first = cells[0].method
    lines = [["noise", "method", "seconds", f"in runs of {first}", "seeds"]]
    plain_seconds: dict[str, float | None] = {}
    for noise, method, group in _groups(cells):
        seconds = [cell.results["seconds"] for cell in group if cell.results.get("seconds") is not None]
        cost = mean(seconds) if seconds else None
        plain_seconds.setdefault(noise, cost)  # the first method comes first
        against = plain_seconds[noise]
        times = f"{cost / against:.2f}" if cost is not None and against else NONE
        lines.append([noise, method, NONE if cost is None else f"{cost:.0f}", times, str(len(seconds))])
    return lines


def _groups(cells: Sequence[Cell]) -> Iterator[tuple[str, str, list[Cell]]]:
    """Noise, method, and the cells that have both, sorted by level (in the order of the grid), ratio and method."""
    levels = list(dict.fromkeys(cell.level for cell in cells))
    groups: dict[tuple[int, float, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((levels.index(cell.level), cell.ratio, cell.method), []).append(cell)
    for (_, _, method), group in sorted(groups.items(), key=lambda entry: entry[0][:2]):
        yield group[0].noise, method, group


def _mean(found: Iterable[dict], key: str) -> str:
    values = [each[key] for each in found if each.get(key) is not None]
    return f"{mean(values):.3f}" if values else NONE


def tables_of(rows: Sequence[dict], cells: Sequence[Cell], stages: dict[str, str]) -> dict[str, list[list[str]]]:
    """All tables by their titles."""
    tables = {
        f"recall on {cells[0].results['split']} ({protocol}), {label}, percent": table_lines(
            [row for row in rows if row["protocol"] == protocol], stage
        )
        for protocol in dict.fromkeys(row["protocol"] for row in rows)
        for stage, label in stages.items()
    }
    if len(lines := detection_lines(cells)) > 1:
        tables[FOUND] = lines
    if len({cell.method for cell in cells}) > 1:
        tables[COST.format(first=cells[0].method)] = cost_lines(cells)
    return tables


def markdown(rows: Sequence[dict], cells: Sequence[Cell]) -> str:
    """The whole comparison as Markdown: a table per protocol and stage, and what it rests on."""
    first = cells[0].results
    parts = [f"# Recall on {first['split']}, percent (mean ± sample standard deviation over training seeds)\n"]
    for title, lines in tables_of(rows, cells, {**STAGES, "zero_shot": "step 0 (before training)"}).items():
        parts += [f"## {plain(title)}\n", _markdown_lines(lines)]
    noise = {cell.noise: cell.results["noise"]["sha256"][:12] for cell in cells}
    machine = first["provenance"]["machine"]
    parts.append(
        f"One draw per noise ({', '.join(f'{label}: {sha}' for label, sha in noise.items())}), shared by all methods "
        f"and seeds. {counted(machine['processes'], 'process', 'processes')} on {machine['device']}, "
        f"torch {first['provenance']['versions']['torch']}.\n"
    )
    return "\n".join(parts)


def _markdown_lines(lines: list[list[str]]) -> str:
    header, *rows = [[plain(cell) for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in (header, ["---"] * len(header), *rows))


def save(rows: list[dict], cells: Sequence[Cell], out: Path) -> None:
    """`comparison.md` and `comparison.json` in `out`."""
    runs = [
        {"method": cell.method, "noise": cell.ratio, "level": cell.level, "seed": cell.seed, **cell.results}
        for cell in cells
    ]
    write_json(out / TABLE, {"rows": rows, "runs": runs})
    write_text(out / "comparison.md", markdown(rows, cells))
