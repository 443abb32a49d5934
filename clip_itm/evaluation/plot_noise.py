"""The plot of a comparison: rsum of every method against the fraction of wrong captions."""

from collections.abc import Sequence
from pathlib import Path

from clip_itm.evaluation.plot import COLORS, INK, drawing, has_matplotlib
from clip_itm.visible import visible

LABEL_HEIGHT = 12  # points


def plot_noise(rows: Sequence[dict], path: str | Path, title: str) -> bool:
    """Plot rows of one protocol and stage (from `summarise`: method, noise, level, rsum, rsum_std) as a PNG.

    A panel per level that has several ratios; rows without noise are in all of them. The bands are one sample standard
    deviation over seeds. Returns False, and writes nothing, if matplotlib is missing, no level has several ratios, or
    there are more methods than colours.
    """
    methods = dict.fromkeys(row["method"] for row in rows)
    panels = {level: [row for row in rows if row["level"] == level or not row["noise"]] for level in levels_of(rows)}
    panels = {level: own for level, own in panels.items() if len({row["noise"] for row in own}) > 1}
    if not panels or len(methods) > len(COLORS) or not has_matplotlib():
        return False
    low = min(row["rsum"] - row["rsum_std"] for own in panels.values() for row in own)
    high = max(row["rsum"] + row["rsum_std"] for own in panels.values() for row in own)
    margin = 0.05 * (high - low) or 1
    with drawing(path, len(panels), (max(6.4, 4.4 * len(panels)), 4.2)) as axes_of_levels:
        for axes, (level, own) in zip(axes_of_levels, panels.items(), strict=True):
            axes.set_ylim(low - margin, high + margin)
            ends = {
                method: (draw_method(axes, [row for row in own if row["method"] == method], color), color)
                for method, color in zip(methods, COLORS, strict=False)
            }
            ratios = sorted({row["noise"] for row in own})
            axes.set_xticks(ratios)
            axes.xaxis.set_major_formatter(lambda ratio, _: f"{100 * ratio:g} %")
            axes.set_xlabel("training captions that are wrong" + f" ({level} level)" * (len(panels) > 1))
            axes.margins(x=0.12)
            label_ends(axes, ratios[-1], ends)
        axes_of_levels[0].set_ylabel("rsum (R@1 + R@5 + R@10, both ways)")
        axes_of_levels[0].set_title(visible(title), loc="left", fontsize=10, color=INK)
    return True


def levels_of(rows: Sequence[dict]) -> list[str]:
    """The levels that rows with noise have, in their order."""
    return list(dict.fromkeys(row["level"] for row in rows if row["noise"]))


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
