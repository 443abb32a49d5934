"""`clip-itm interpolate`: the models between the pretrained and the fine-tuned weights (WiSE-FT); the best is kept."""

import argparse
import shutil
from pathlib import Path

from clip_itm.commands.output import OutputFolder
from clip_itm.visible import counted, say

NOTES = {
    "val": "best rsum on val",
    "both": "best mean of val recall and zero-shot accuracy (so the latter is no independent figure for this point)",
}

SHOWN = {
    "i2t_r1": "i2t R@1",
    "t2i_r1": "t2i R@1",
    "i2t_map_at_r": "i2t mAP@R",
    "t2i_map_at_r": "t2i mAP@R",
    "rsum": "rsum",
}


def add_parser(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "interpolate",
        help="evaluate the line between pretrained and fine-tuned weights (WiSE-FT) and save the best point",
        description="Evaluate (1 - alpha) * base + alpha * tuned for every alpha: recall on val and on the final split "
        "of the tuned model's recipe, and zero-shot accuracy on photos in class folders. The point is chosen on val, "
        "never on the final split. Keys of the recipe may be set as for clip-itm evaluate.",
        allow_abbrev=False,
    )
    parser.add_argument("--tuned", required=True, metavar="MODEL", help="run folder or model folder")
    parser.add_argument("--base", metavar="MODEL", help="default: what the tuned model's recipe started from")
    parser.add_argument(
        "--out", required=True, type=OutputFolder, metavar="DIR", help="a folder that does not exist or is empty"
    )
    parser.add_argument(
        "--alphas",
        type=alphas,
        default="0:1:0.1",
        metavar="FIRST:LAST:STEP",
        help="points from 0 (base) to 1 (tuned); default: 0:1:0.1",
    )
    parser.add_argument(
        "--choose",
        type=rule,
        default="val",
        metavar="RULE",
        help="val: best rsum on val (default); both: best mean of val recall and zero-shot accuracy; or an alpha",
    )
    zero_shot = parser.add_argument_group("a zero-shot classification set")
    zero_shot.add_argument("--zeroshot", metavar="DIR", help="folder with a subfolder of photos for each class")
    zero_shot.add_argument("--templates", metavar="FILE", help="one sentence per line, {} for the class")
    zero_shot.add_argument("--classes", metavar="FILE", help="CSV, TSV or JSONL: names of classes (folder, name)")


def alphas(word: str) -> list[float]:
    try:
        first, last, step = map(float, word.split(":"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected FIRST:LAST:STEP, such as 0:1:0.1, got {word}") from None
    if not (0 <= first <= last <= 1 and 0.001 <= step <= 1):
        raise argparse.ArgumentTypeError(f"expected alphas from 0 to 1 in steps of at least 0.001, got {word}")
    count = int((last - first) / step + 1e-6) + 1
    return [round(first + index * step, 6) for index in range(count)]


def rule(word: str) -> str | float:
    if word in ("val", "both"):
        return word
    try:
        return float(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected val, both or an alpha, got {word}") from None


def run(args: argparse.Namespace) -> int:
    from clip_itm.commands.evaluate import recipe_of_model
    from clip_itm.files import model_folder, require_free
    from clip_itm.offline import require_recipe
    from clip_itm.recipe import load_recipe

    require_free(Path(args.out))
    check_choice(args)
    tuned = model_folder(args.tuned)
    base = None if args.base is None else model_folder(args.base)
    has_recipe = (tuned / "recipe.yaml").is_file()
    if base is None and not has_recipe:
        raise ValueError(f"{tuned}: there is no recipe that tells what this model started from; name it with --base")
    recipe = load_recipe(tuned, args.overrides) if has_recipe else recipe_of_model(tuned, args.overrides)
    require_recipe(recipe, backbone=base is None)

    from clip_itm.data.class_folder import read_class_folder
    from clip_itm.distributed import process_state
    from clip_itm.runs.interpolate import Line, choose, set_weights

    classes = None
    if args.zeroshot is not None:
        tables = (None if name is None else Path(name) for name in (args.templates, args.classes))
        classes = read_class_folder(args.zeroshot, *tables)
    line = Line(recipe, base, tuned, classes)
    if line.val is None and isinstance(args.choose, str):
        raise ValueError(
            f"data: the source {recipe.data.source!r} has no val split to choose on; name a point with --choose ALPHA"
        )
    points = line.points(args.alphas)
    chosen = choose(points, args.choose)
    set_weights(line.model, line.base, line.tuned, chosen.alpha)
    if process_state().is_main_process:
        content = content_of(args, line, points, chosen)
        show(content)
        save(Path(args.out), line, tuned, content)
    return 0


def check_choice(args: argparse.Namespace) -> None:
    if args.zeroshot is None and (args.templates or args.classes or args.choose == "both"):
        raise ValueError("--templates, --classes and --choose both need a zero-shot set; name it with --zeroshot")
    if isinstance(args.choose, float) and args.choose not in args.alphas:
        raise ValueError(
            f"--choose {args.choose:g} is not one of the alphas ({', '.join(f'{a:g}' for a in args.alphas)})"
        )


def content_of(args: argparse.Namespace, line, points: list, chosen) -> dict:
    """What `interpolation.json` says; figures in percent."""
    content = {
        "base": args.base or "step 0 of the recipe",
        "tuned": str(args.tuned),
        "recipe_sha256": line.recipe.sha256,
        "split": line.final.name,
        "splits": {split.name: split.sha256 for split in (line.val, line.final) if split is not None},
        "chosen": {"alpha": chosen.alpha, "by": NOTES.get(args.choose, "hand")},
        "points": [
            {"alpha": point.alpha, "val": point.val, "results": point.results, "zero_shot": point.zero_shot}
            for point in points
        ],
    }
    if line.classes is not None:
        classes = line.classes
        content["zero_shot"] = {
            "folder": str(args.zeroshot),
            "images": len(classes.rows),
            "skipped": [out._asdict() for out in classes.skipped],
            "classes": classes.names,
            "templates": classes.templates,
        }
    return content


def show(content: dict) -> None:
    """The table; the chosen point stands out."""
    from rich.table import Table

    from clip_itm.commands.terminal import print_table

    protocols = list(content["points"][0]["results"])
    table = Table(title=f"alpha 0 base, 1 tuned; on {content['split']}, percent", title_justify="left")
    table.add_column("alpha", justify="right")
    table.add_column("val rsum", justify="right")
    for protocol in protocols:
        for name in shown(content["points"][0]["results"][protocol]["metrics"]):
            table.add_column(f"{protocol} {SHOWN[name]}" if len(protocols) > 1 else SHOWN[name], justify="right")
    if "zero_shot" in content:
        table.add_column(f"top-1 ({counted(content['zero_shot']['images'], 'photo')})", justify="right")
    for point in content["points"]:
        cells = [f"{point['alpha']:g}", "" if point["val"] is None else f"{point['val']['rsum']:.1f}"]
        for result in point["results"].values():
            cells += [f"{result['metrics'][name]:.1f}" for name in shown(result["metrics"])]
        if point["zero_shot"] is not None:
            cells.append(f"{point['zero_shot']:.1f}")
        table.add_row(*cells, style="bold" if point["alpha"] == content["chosen"]["alpha"] else None)
    print_table(table)
    print(f"chosen: alpha {content['chosen']['alpha']:g}, {content['chosen']['by']}")


def shown(metrics: dict) -> list[str]:
    """The metrics of a protocol that have a column in the table."""
    return [name for name in SHOWN if name in metrics]


def save(out: Path, line, tuned: Path, content: dict) -> None:
    """Figures, the plot where matplotlib is installed, and the chosen model."""
    from transformers.utils.logging import disable_progress_bar

    from clip_itm.checksums import check_files, write_checksums
    from clip_itm.evaluation.plot_line import plot_line
    from clip_itm.files import filling, write_json

    disable_progress_bar()
    with filling(out) as folder:
        model = folder / "model"
        line.model.save_pretrained(model)
        line.processor.save_pretrained(model)
        check_files(tuned, ("recipe.yaml", "provenance.json"))
        for name in ("recipe.yaml", "provenance.json"):
            if (tuned / name).is_file():
                shutil.copy(tuned / name, model / name)
        origin = {name: content[name] for name in ("base", "tuned")} | {"alpha": content["chosen"]["alpha"]}
        write_json(model / "interpolated_from.json", origin)
        write_json(folder / "interpolation.json", content)
        plot = plot_line(content, folder / "interpolation.png")
        write_checksums(model)
        write_checksums(folder)
    say(f"model: {out}/model\nfigures: {out}/interpolation.json" + (f" and {out}/interpolation.png" if plot else ""))
