"""The plot of a comparison: rsum of every method against the fraction of wrong captions."""

from collections.abc import Sequence
from pathlib import Path

from clip_itm.evaluation.plot import COLORS, INK, drawing, has_matplotlib
from clip_itm.visible import visible

LABEL_HEIGHT = 12  # points


def plot_noise(rows: Sequence[dict], path: str | Path, title: str) -> bool:
    """Plot rows of one protocol and stage (from `summarise`: method, noise, rsum, rsum_std, seeds) as a PNG.

    The bands are one sample standard deviation over seeds. Returns False, and writes nothing, if matplotlib is missing,
    there is only one noise ratio, or there are more methods than colours.
    """
    methods = dict.fromkeys(row["method"] for row in rows)
    ratios = sorted({row["noise"] for row in rows})
    if len(ratios) < 2 or len(methods) > len(COLORS) or not has_matplotlib():
        return False
    with drawing(path, 1, (6.4, 4.2)) as (axes,):
        ends = {
            method: (draw_method(axes, [row for row in rows if row["method"] == method], color), color)
            for method, color in zip(methods, COLORS, strict=False)
        }
        axes.set_xticks(ratios)
        axes.xaxis.set_major_formatter(lambda ratio, _: f"{100 * ratio:g} %")
        axes.set_xlabel("training captions that are wrong")
        axes.set_ylabel("rsum (R@1 + R@5 + R@10, both ways)")
        axes.margins(x=0.12)
        label_ends(axes, ratios[-1], ends)
        axes.set_title(visible(title), loc="left", fontsize=10, color=INK)
    return True


def draw_method(axes, rows: Sequence[dict], color: str) -> float:
    """Draw the line and the band of one method; returns its last rsum."""
    rows = sorted(rows, key=lambda row: row["noise"])
    noise, rsum = ([row[name] for row in rows] for name in ("noise", "rsum"))
    low, high = ([row["rsum"] + sign * row["rsum_std"] for row in rows] for sign in (-1, 1))
    axes.fill_between(noise, low, high, color=color, alpha=0.16, linewidth=0)
    axes.plot(noise, rsum, color=color, marker="o", markersize=4)
    return rsum[-1]


def label_ends(axes, ratio: float, ends: dict[str, tuple[float, str]]) -> None:
    """Write the name of each method next to the end of its line; `ends` maps it to the rsum there and a colour."""
    bottom, top = axes.get_ylim()
    points = axes.get_window_extent().height / axes.figure.dpi * 72
    ordered = sorted(ends.items(), key=lambda end: end[1][0])
    positions = spread([rsum for _, (rsum, _) in ordered], (top - bottom) * LABEL_HEIGHT / points)
    for (method, (_, color)), position in zip(ordered, positions, strict=True):
        where = {"xytext": (8, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(
            visible(method), (ratio, position), color=color, weight="bold", fontsize=9, annotation_clip=False, **where
        )


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """The positions nearest to `positions` (ascending; least squares) that are at least `gap` apart."""
    groups = []  # of touching positions: the sum of where each would put the first one, and their number
    for index, position in enumerate(positions):
        groups.append((position - index * gap, 1))
        while len(groups) > 1 and groups[-2][0] / groups[-2][1] > groups[-1][0] / groups[-1][1]:
            (total, count), (more, others) = groups[-2:]
            groups[-2:] = [(total + more, count + others)]
    first = [total / count for total, count in groups for _ in range(count)]
    return [start + index * gap for index, start in enumerate(first)]
