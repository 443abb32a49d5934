"""One figure for retrieval results: bars of recall with their intervals, and the distribution of ranks."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from clip_itm.evaluation.recall import CUTOFFS
from clip_itm.evaluation.result import RetrievalResult
from clip_itm.files import replacing
from clip_itm.visible import visible

DIRECTIONS = (("i2t", "Image to text"), ("t2i", "Text to image"))
COLORS = ("#3b6fb6", "#e07b39", "#4f9d69", "#a2559c", "#8a8a8a", "#c9a227", "#2aa1a8", "#b5484d")
INK, FAINT = "#2b2b2b", "#d9d9d9"


def plot_retrieval(results: Mapping[str, RetrievalResult], path: str | Path, title: str | None = None) -> None:
    """Write a figure (PNG, PDF or SVG, by the suffix of `path`): recall above, ranks below, one colour per label.

    `results` maps the label of each model to its result. Raises ValueError for no results, for more than eight, and if
    matplotlib is not installed.

    Example:
        >>> import tempfile, torch
        >>> from clip_itm.evaluation.protocols import evaluate_retrieval
        >>> result = evaluate_retrieval(torch.eye(3), torch.eye(3), torch.arange(3))["all"]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     plot_retrieval({"CLIP": result}, f"{folder}/recall.png", title="Three photos")
        ...     (Path(folder) / "recall.png").exists()
        True
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("pictures need matplotlib: pip install 'clip-itm[plot]'") from None
    if not 0 < len(results) <= len(COLORS):
        raise ValueError(f"{len(results)} results to plot; expected 1 to {len(COLORS)}")

    look = {
        "font.size": 9,
        "text.parse_math": False,  # dollars in names are dollars
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": FAINT,
        "axes.labelcolor": INK,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
    }
    with rc_context(look):
        figure = Figure(figsize=(9.5, 6.6), layout="constrained")
        axes = figure.subplots(2, 2, sharey="row")
        bins = bins_needed(results)
        for column, (direction, name) in enumerate(DIRECTIONS):
            draw_recalls(axes[0, column], results, direction)
            draw_ranks(axes[1, column], results, direction, bins)
            axes[0, column].set_title(name)
        axes[0, 0].set_ylabel("recall (%)")
        axes[1, 0].set_ylabel("queries (%)")
        if title:
            figure.suptitle(visible(title), x=0.01, ha="left", fontsize=12, fontweight="bold")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        if len(results) > 1:
            figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4), frameon=False)
        with replacing(path) as temporary:
            figure.savefig(temporary, dpi=160, format=temporary.suffix.lstrip(".") or "png")


def draw_recalls(axes, results: Mapping[str, RetrievalResult], direction: str) -> None:
    """Grouped bars of R@1, 5, 10; whiskers are the 95 % intervals."""
    width = 0.8 / len(results)
    for index, ((label, result), color) in enumerate(zip(results.items(), COLORS, strict=False)):
        names = [f"{direction}_r{k}" for k in CUTOFFS]
        heights = np.array([result.metrics[name] for name in names])
        positions = np.arange(len(CUTOFFS)) + (index - (len(results) - 1) / 2) * width
        bars = axes.bar(positions, heights, 0.92 * width, color=color, label=visible(label))
        tops = heights
        if result.intervals:
            low, high = np.array([result.intervals[name] for name in names]).T
            reach = np.clip([heights - low, high - heights], 0, None)
            axes.errorbar(positions, heights, reach, fmt="none", ecolor=INK, elinewidth=0.9, capsize=2.5)
            tops = np.maximum(heights, high)
        if len(results) <= 4:
            for bar, height, top in zip(bars, heights, tops, strict=True):
                middle = bar.get_x() + bar.get_width() / 2
                axes.text(middle, top + 1.5, f"{height:.1f}", ha="center", va="bottom", fontsize=8)
    axes.set_xticks(range(len(CUTOFFS)), [f"R@{k}" for k in CUTOFFS])
    axes.set_ylim(0, 108)
    axes.set_yticks(range(0, 101, 20))
    dress(axes)


def draw_ranks(axes, results: Mapping[str, RetrievalResult], direction: str, bins: int) -> None:
    """Percent of queries with rank 1, 2-3, 4-7, 8-15, ...; the dashed line is at the median rank."""
    edges = np.arange(bins + 1)
    for (_, result), color in zip(results.items(), COLORS, strict=False):
        fraction = rank_fractions(all_ranks(result, direction), bins)
        axes.stairs(fraction, edges, color=color, linewidth=1.6, fill=False)
        axes.stairs(fraction, edges, color=color, alpha=0.16, fill=True)
        median = result.metrics[f"{direction}_median_rank"]
        first = 2 ** np.floor(np.log2(median))
        axes.axvline(np.log2(first) + (median - first + 0.5) / first, color=color, linestyle=(0, (3, 2)), linewidth=1)
    labels = [f"{2**n:,}" if n == 0 else f"{2**n:,}–" for n in range(bins)]
    axes.set_xticks(edges[:-1] + 0.5, labels, fontsize=8 if bins > 8 else 9)
    axes.set_xlim(0, bins)
    axes.set_xlabel("rank of the right answer (dashed: median)")
    dress(axes)


def rank_fractions(ranks: np.ndarray, bins: int) -> np.ndarray:
    """Percent of the ranks in [1, 2), [2, 4), [4, 8), ... [2^(bins-1), 2^bins)."""
    return 100 * np.histogram(ranks, 2 ** np.arange(bins + 1) - 0.5)[0] / len(ranks)


def bins_needed(results: Mapping[str, RetrievalResult]) -> int:
    """The number of doubling bins that hold the worst rank of all results."""
    worst = max(all_ranks(result, direction).max() for result in results.values() for direction, _ in DIRECTIONS)
    return int(worst).bit_length()


def all_ranks(result: RetrievalResult, direction: str) -> np.ndarray:
    """Ranks of all queries of all folds."""
    name = {"i2t": "image_to_text", "t2i": "text_to_image"}[direction]
    return np.concatenate([getattr(ranks, name) for ranks in result.folds])


def dress(axes) -> None:
    """Horizontal grid lines behind the data, no tick marks."""
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)


@contextmanager
def drawing(
    path: str | Path, columns: int, size: tuple[float, float], heights: Sequence[float] = (1,)
) -> Iterator[list]:
    """The axes of a line plot with `columns` panels, written as a PNG on leaving the block; `size` is in inches.

    `heights`: of the rows, whose panels share the axis below; the panels come row by row.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"text.parse_math": False}):
        figure = Figure(figsize=size, layout="constrained")
        panels = list(figure.subplots(len(heights), columns, sharex="col", height_ratios=heights, squeeze=False).flat)
        yield panels
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(FAINT)
        dress(axes)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=160, format="png")


def has_matplotlib() -> bool:
    """Whether matplotlib can be imported."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return False
    return True
