"""Training curves for a model card: recall on the val split over the steps of a run."""

from pathlib import Path

from clip_itm.evaluation.plot import COLORS, INK, drawing, has_matplotlib


def draw_curves(history: list[dict], best_step: int, path: Path) -> bool:
    """Write a PNG of `val_history` of results.json; without matplotlib write nothing and return False."""
    if not has_matplotlib():
        return False
    steps = [entry["step"] for entry in history]
    with drawing(path, 2, (9.5, 3.2)) as (total, single):
        total.plot(steps, [entry["eval_rsum"] for entry in history], color=COLORS[0], marker="o", markersize=3)
        total.set_title("sum of the six recalls", loc="left", fontsize=10)
        for direction, name, color in (("i2t", "image to text", COLORS[0]), ("t2i", "text to image", COLORS[1])):
            values = [entry[f"eval_{direction}_r1"] for entry in history]
            single.plot(steps, values, color=color, marker="o", markersize=3, label=name)
        single.set_title("R@1 (%)", loc="left", fontsize=10)
        single.legend(frameon=False, fontsize=8)
        for axes in (total, single):
            axes.axvline(best_step, color=INK, linestyle=(0, (3, 2)), linewidth=1)
            axes.set_xlabel("step (dashed: this model)", fontsize=9)
    return True
