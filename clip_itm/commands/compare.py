"""`clip-itm compare`: recipes x noise ratios x seeds, and the table over them."""

import argparse
from pathlib import Path


def add_parser(verbs) -> None:
    parser = verbs.add_parser(
        "compare",
        help="run a grid of recipes, noise ratios and seeds and print the table",
        description="Runs that are finished are not repeated and interrupted ones are resumed, so the same command "
        "goes on where it stopped. All methods share one noise draw per ratio, and are compared with the first recipe. "
        "Keys may be set for all runs.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("recipes", nargs="+", metavar="RECIPE")
    parser.add_argument("--noise", nargs="+", type=float, default=[0.0, 0.4], metavar="RATIO", help="default: 0 0.4")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="SEED", help="default: 0")
    parser.add_argument("--out", default="runs/compare", metavar="DIR", help="default: runs/compare")
    parser.add_argument("--montage", action="store_true", help="draw some queries with their top photos")


def run(args) -> int:
    from clip_itm.training.compare import Cell, add_differences, plan, save, summarise

    out = Path(args.out)
    runs = plan(args.recipes, args.noise, args.seeds, out, args.overrides)

    from clip_itm.distributed import process_state
    from clip_itm.evaluation.plot_noise import plot_noise
    from clip_itm.training.run import train

    main = process_state().is_main_process

    cells = []
    for number, (method, recipe) in enumerate(runs, 1):
        if main:
            what = f"{method}, noise {recipe.noise.ratio:g}, seed {recipe.training.seed}"
            print(f"\n[{number}/{len(runs)}] {what}", flush=True)
        cells.append(Cell(method, recipe.noise.ratio, recipe.training.seed, train(recipe), Path(recipe.output_dir)))
    if main:
        rows = summarise(cells)
        add_differences(rows, cells)
        save(rows, cells, out)
        show(rows, cells)
        print(f"table: {out}/comparison.md and comparison.json")
        protocol = next((row["protocol"] for row in rows if "rsum" in row), None)
        best = [row for row in rows if row["stage"] == "best" and row["protocol"] == protocol]
        title = f"{runs[0][1].data.source}, recall on {cells[0].results['split']} ({protocol})"
        if plot_noise(best, out / "comparison.png", title):
            print(f"picture: {out}/comparison.png")
    if args.montage:
        from clip_itm.training.montage import draw_montage

        folders = {f"{method}, noise {recipe.noise.ratio:g}": Path(recipe.output_dir) for method, recipe in runs}
        draw_montage(folders, out / "queries.png")  # all processes encode
        if main:
            print(f"picture: {out}/queries.png")
    return 0


def show(rows: list[dict], cells: list) -> None:
    """The tables in the terminal."""
    from rich.table import Table

    from clip_itm.commands.terminal import print_table
    from clip_itm.training.compare import STAGES, detection_lines, table_lines

    tables = {
        f"recall on {cells[0].results['split']} ({protocol}), {label}, percent": table_lines(
            [row for row in rows if row["protocol"] == protocol], stage
        )
        for protocol in dict.fromkeys(row["protocol"] for row in rows)
        for stage, label in STAGES.items()
    }
    if len(lines := detection_lines(cells)) > 1:
        tables["wrong training pairs found (precision among as many suspects as pairs are wrong)"] = lines
    for title, (header, *lines) in tables.items():
        table = Table(title=title)
        for column in header:
            table.add_column(column, justify="right" if column != "method" else "left")
        for line in lines:
            table.add_row(*line)
        print_table(table)
