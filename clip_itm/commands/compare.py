"""`clip-itm compare`: recipes x noise x seeds, and the tables over them."""

import argparse
from pathlib import Path

from clip_itm.visible import say


def add_parser(verbs) -> None:
    parser = verbs.add_parser(
        "compare",
        help="run a grid of recipes, noises and seeds and print the tables",
        description="Finished runs are not repeated and interrupted ones are resumed, so the same command continues "
        "where it stopped. All methods share one draw per noise, and are compared with the first recipe. Keys may be "
        "set for all runs.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("recipes", nargs="+", metavar="RECIPE")
    parser.add_argument(
        "--noise",
        nargs="+",
        default=["0", "0.4"],
        metavar="NOISE",
        help="ratios, at the recipes' noise.level or at a named one: 0 0.4 image:0.4 neighbour:0.4 (default: 0 0.4)",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="SEED", help="default: 0")
    parser.add_argument("--out", default="runs/compare", metavar="DIR", help="default: runs/compare")
    parser.add_argument("--montage", action="store_true", help="draw some queries with their top photos")


def run(args) -> int:
    from clip_itm.offline import require_recipe
    from clip_itm.recipe import load_recipe

    for file in args.recipes:  # mistakes are reported before torch is imported
        load_recipe(file, args.overrides)

    from clip_itm.runs.compare import plan, require_comparison
    from clip_itm.runs.folder import RunFolder

    out = Path(args.out)
    runs = plan(args.recipes, args.noise, args.seeds, out, args.overrides)
    for _, recipe in runs:
        if not RunFolder(Path(recipe.output_dir)).is_finished:
            require_recipe(recipe)

    from clip_itm.training.folder import held

    with held(out, "compare", key="--out"):
        require_comparison(out)
        _run(runs, out, args.montage)
    return 0


def _run(runs: list, out: Path, montage: bool) -> None:
    from clip_itm.distributed import process_state
    from clip_itm.runs.compare import Cell, add_differences, noise_label, require_same_draw, summarise
    from clip_itm.runs.compare_tables import save
    from clip_itm.runs.train import best_effort, train

    main = process_state().is_main_process
    cells = []
    for number, (method, recipe) in enumerate(runs, 1):
        if main:
            what = f"{method}, noise {noise_label(recipe.noise.level, recipe.noise.ratio)}"
            say(f"\n[{number}/{len(runs)}] {what}, seed {recipe.training.seed}")
        cells.append(Cell(method, recipe.noise.ratio, recipe.training.seed, train(recipe), Path(recipe.output_dir)))
        require_same_draw(cells)
    if main:
        rows = summarise(cells)
        add_differences(rows, cells)
        save(rows, cells, out)
        say(f"table: {out}/comparison.md and comparison.json")
        again = "the same command shows it again, without training"
        with best_effort("the table", again):
            show(rows, cells)
        with best_effort("the picture", again):
            draw(rows, runs[0][1].data.source, cells[0].results["split"], out / "comparison.png")
    if montage:
        from clip_itm.runs.montage import draw_montage

        folders = {f"{cell.method}, noise {cell.noise}": cell.folder for cell in cells}
        draw_montage(folders, out / "queries.png")  # all processes encode
        if main:
            say(f"picture: {out}/queries.png")


def draw(rows: list[dict], source: str, split: str, file: Path) -> None:
    """The picture, if a level has several noise ratios to compare."""
    from clip_itm.evaluation.plot_noise import plot_noise

    protocol = next((row["protocol"] for row in rows if "rsum" in row), None)
    best = [row for row in rows if row["stage"] == "best" and row["protocol"] == protocol]
    if plot_noise(best, file, f"{source}, recall on {split} ({protocol})"):
        say(f"picture: {file}")


def stopped(args) -> str:
    """What to say when Ctrl-C has stopped the comparison."""
    from clip_itm.commands.train import stopped_runs
    from clip_itm.runs.folder import RunFolder

    runs = [RunFolder(path.parent) for path in Path(args.out).glob("*/noise-*/seed-*/recipe.yaml")]
    begun = [run for run in runs if not run.is_finished]
    if runs and not begun:
        return "stopped; the same command keeps the runs that are finished and goes on with the next"
    return stopped_runs(begun)


def show(rows: list[dict], cells: list) -> None:
    """The tables in the terminal."""
    from clip_itm.commands.terminal import print_lines
    from clip_itm.runs.compare import STAGES
    from clip_itm.runs.compare_tables import tables_of

    for title, lines in tables_of(rows, cells, STAGES).items():
        print_lines(title, lines, left=["noise", "method"])
