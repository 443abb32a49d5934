"""The picture of a comparison: rsum of every method over the share of wrong captions."""

from collections.abc import Sequence
from pathlib import Path

from clip_itm.evaluation.plot import COLORS, FAINT, INK, dress
from clip_itm.files import replacing


def plot_noise(rows: Sequence[dict], path: str | Path, title: str) -> bool:
    """Draw rows of one protocol and stage (of `summarise`: method, noise, rsum, rsum_std, seeds) as a PNG.

    The bands are one sample standard deviation over seeds. False, and nothing is written, where matplotlib is missing
    or there is only one noise ratio.
    """
    methods = dict.fromkeys(row["method"] for row in rows)
    if len({row["noise"] for row in rows}) < 2 or len(methods) > len(COLORS):
        return False
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for method, color in zip(methods, COLORS, strict=False):
        own = sorted((row for row in rows if row["method"] == method), key=lambda row: row["noise"])
        noise, rsum = ([row[name] for row in own] for name in ("noise", "rsum"))
        low, high = ([row["rsum"] + sign * row["rsum_std"] for row in own] for sign in (-1, 1))
        axes.fill_between(noise, low, high, color=color, alpha=0.16, linewidth=0)
        axes.plot(noise, rsum, color=color, marker="o", markersize=4)
        axes.annotate(method, (noise[-1], rsum[-1]), (8, -3), textcoords="offset points", color=color, weight="bold")
    axes.set_xticks(sorted({row["noise"] for row in rows}), labels=None)
    axes.xaxis.set_major_formatter(lambda ratio, _: f"{100 * ratio:g} %")
    axes.set_xlabel("training captions that are wrong")
    axes.set_ylabel("rsum (R@1 + R@5 + R@10, both ways)")
    axes.margins(x=0.12)
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    dress(axes)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=160, format="png")
    return True
