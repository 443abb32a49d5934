"""The picture of a comparison: rsum of every method over the share of wrong captions."""

from collections.abc import Sequence
from pathlib import Path

from clip_itm.evaluation.plot import COLORS, INK, drawing, has_matplotlib


def plot_noise(rows: Sequence[dict], path: str | Path, title: str) -> bool:
    """Draw rows of one protocol and stage (of `summarise`: method, noise, rsum, rsum_std, seeds) as a PNG.

    The bands are one sample standard deviation over seeds. False, and nothing is written, where matplotlib is missing
    or there is only one noise ratio.
    """
    methods = dict.fromkeys(row["method"] for row in rows)
    ratios = sorted({row["noise"] for row in rows})
    if len(ratios) < 2 or len(methods) > len(COLORS) or not has_matplotlib():
        return False
    with drawing(path, 1, (6.4, 4.2)) as (axes,):
        for method, color in zip(methods, COLORS, strict=False):
            draw_method(axes, [row for row in rows if row["method"] == method], color)
        axes.set_xticks(ratios)
        axes.xaxis.set_major_formatter(lambda ratio, _: f"{100 * ratio:g} %")
        axes.set_xlabel("training captions that are wrong")
        axes.set_ylabel("rsum (R@1 + R@5 + R@10, both ways)")
        axes.margins(x=0.12)
        axes.set_title(title, loc="left", fontsize=10, color=INK)
    return True


def draw_method(axes, rows: Sequence[dict], color: str) -> None:
    rows = sorted(rows, key=lambda row: row["noise"])
    noise, rsum = ([row[name] for row in rows] for name in ("noise", "rsum"))
    low, high = ([row["rsum"] + sign * row["rsum_std"] for row in rows] for sign in (-1, 1))
    axes.fill_between(noise, low, high, color=color, alpha=0.16, linewidth=0)
    axes.plot(noise, rsum, color=color, marker="o", markersize=4)
    place = {"xytext": (8, -3), "textcoords": "offset points"}
    axes.annotate(rows[0]["method"], (noise[-1], rsum[-1]), color=color, weight="bold", **place)
