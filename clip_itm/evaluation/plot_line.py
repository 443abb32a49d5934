"""A plot of the models between two others: zero-shot accuracy against retrieval, or rsum against alpha."""

from pathlib import Path

from clip_itm.evaluation.plot import COLORS, INK, drawing, has_matplotlib


def plot_line(content: dict, path: Path) -> bool:
    """Plot the content of `interpolation.json` as a PNG.

    Returns False, and writes nothing, if matplotlib is missing or no protocol has an rsum.
    """
    results = content["points"][0]["results"].values()
    if not has_matplotlib() or not any("rsum" in result["metrics"] for result in results):
        return False
    draw = draw_rsum if content["points"][0]["zero_shot"] is None else draw_trade_off
    with drawing(path, 1, (6.4, 4.8)) as (axes,):
        draw(axes, content)
    return True


def draw_trade_off(axes, content: dict) -> None:
    """Zero-shot accuracy against the rsum of the first protocol that has one; labels give alpha."""
    points, chosen = content["points"], content["chosen"]["alpha"]
    rsums, accuracies = final_rsums(points), [point["zero_shot"] for point in points]
    axes.plot(rsums, accuracies, color=COLORS[0], linewidth=1.2, marker="o", markersize=4)
    for point, rsum, accuracy in zip(points, rsums, accuracies, strict=True):
        axes.annotate(
            f"{point['alpha']:g}", (rsum, accuracy), (5, 5), textcoords="offset points", fontsize=8, color=INK
        )
        if point["alpha"] == chosen:
            axes.plot(rsum, accuracy, "o", markersize=11, color=COLORS[1], fillstyle="none", label="chosen")
    axes.set_xlabel(f"rsum on {content['split']}")
    axes.set_ylabel("zero-shot top-1 accuracy (%)")
    axes.set_title("alpha: 0 base, 1 tuned", loc="left", fontsize=10)
    axes.legend(frameon=False)


def draw_rsum(axes, content: dict) -> None:
    """rsum on val and on the final split against alpha; the dashed line is at the chosen point."""
    points = content["points"]
    positions = [point["alpha"] for point in points]
    axes.plot(positions, final_rsums(points), color=COLORS[0], marker="o", markersize=4, label=content["split"])
    if points[0]["val"] is not None and content["split"] != "val":
        val = [point["val"]["rsum"] for point in points]
        axes.plot(positions, val, color=COLORS[1], marker="o", markersize=4, label="val")
    axes.axvline(content["chosen"]["alpha"], color=INK, linestyle=(0, (3, 2)), linewidth=1)
    axes.set_xlabel("alpha: 0 base, 1 tuned (dashed: chosen)")
    axes.set_ylabel("rsum")
    axes.legend(frameon=False)


def final_rsums(points: list[dict]) -> list[float]:
    """Of every point, the rsum on the final split under the first protocol that has one."""
    return [
        next(result["metrics"]["rsum"] for result in point["results"].values() if "rsum" in result["metrics"])
        for point in points
    ]
