"""`clip-itm evaluate`: recall of a run, of a saved model, or of a recipe's backbone before training."""

import argparse
from pathlib import Path

from clip_itm.commands.output import OutputFile
from clip_itm.visible import counted


def add_parser(verbs) -> None:
    parser = verbs.add_parser(
        "evaluate",
        help="recall of a run, a saved model, or an untrained backbone",
        description="A run folder (its best model), a folder written by save_pretrained, or a recipe (its backbone as "
        "it is, zero-shot). Several are an ensemble, the mean of their scores. Data and protocols come from the recipe "
        "found there (the first one's); keys such as --data.root, --evaluation.split val and --evaluation.protocols "
        "'[coco-5k]' change them. A model folder without a recipe (clip-itm import) needs --data.source and the keys "
        "of that source.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("what", nargs="+", help="run folder, model folder or recipe")
    parser.add_argument("--json", type=OutputFile, metavar="FILE", help="write the results here as JSON")
    parser.add_argument(
        "--plot", type=OutputFile, metavar="FILE", help="draw recall bars and rank histograms here (extra: plot)"
    )


def run(args) -> int:
    from clip_itm.offline import require_recipe

    members = [find_model(Path(what), args.overrides) for what in args.what]
    best, recipe = members[0]
    for other, own in members[1:]:
        if own.data != recipe.data:
            raise ValueError(f"{best} and {other} have different data: an ensemble needs the same `data:` section")
    for where, own in members:
        require_recipe(own, backbone=not (where / "config.json").is_file())

    from clip_itm.checksums import check_files
    from clip_itm.commands.terminal import print_table
    from clip_itm.data.load import load_splits
    from clip_itm.distributed import process_state
    from clip_itm.evaluation.protocols import PROTOCOLS
    from clip_itm.evaluation.report import terminal_table
    from clip_itm.files import write_json
    from clip_itm.reading import read_json
    from clip_itm.runs.ensemble import evaluate_encoders
    from clip_itm.runs.setup import final_split, make_encoder, make_model, prepare_images, saved_encoder

    with_recall = [name for name in recipe.evaluation.protocols if PROTOCOLS[name].has_recall]
    if args.plot and not with_recall:
        named = " and ".join(dict.fromkeys(recipe.evaluation.protocols))
        raise ValueError(
            f"--plot draws recall and ranks, and the protocol {named} has neither: name another one as well"
        )
    state = process_state()
    with state.main_process_first():
        splits = load_splits(recipe.data)
    split = final_split(recipe, splits)
    image_cache = prepare_images(recipe, {split.name: split})
    encoders = [
        saved_encoder(where, own, image_cache)
        if (where / "config.json").is_file()
        else make_encoder(own, *make_model(own, splits), image_cache)
        for where, own in members
    ]
    section = recipe.evaluation
    results = evaluate_encoders(split, encoders, section.protocols, section.bootstrap, section.same_caption)
    if not state.is_main_process:
        return 0
    named = " + ".join(str(where) for where, _ in members)
    title = (
        f"{named}: recall on {split.name} of {recipe.data.source} ({counted(len(split), 'photo')}, "
        f"{counted(len(split.pairs), 'caption')})"
    )
    print_table(terminal_table([(name, result.as_dict()) for name, result in results.items()], title=title))
    if args.json:
        content = {"model": named, "split": split.name, "split_sha256": split.sha256, "recipe": recipe.sha256}
        content |= {"images": len(split), "captions": len(split.pairs)}
        content["skipped"] = [out._asdict() for out in split.skipped]
        for name in ("provenance", "imported_from"):
            if len(members) == 1 and (best / f"{name}.json").is_file():
                check_files(best, (f"{name}.json",))
                content[name] = read_json(best / f"{name}.json", "a JSON file of a model")
        write_json(Path(args.json), content | {name: result.as_dict() for name, result in results.items()})
    if args.plot:
        from clip_itm.evaluation.plot import plot_retrieval

        plot_retrieval({name: results[name] for name in with_recall}, args.plot, title=title)
    return 0


def find_model(where: Path, overrides: list[str]):
    """The folder of the model and its recipe; without a model, the recipe's file and the recipe."""
    from clip_itm.recipe import load_recipe
    from clip_itm.runs.folder import RunFolder

    run = RunFolder(where)
    best = run.model if run.has_model else where
    if (best / "config.json").is_file():
        has_recipe = (best / "recipe.yaml").is_file()
        return best, load_recipe(best, overrides) if has_recipe else recipe_of_model(best, overrides)
    recipe = load_recipe(best, overrides)
    if where.is_dir():
        raise ValueError(
            f"{where}: this run is not finished (it has no best/): train it to its end, or evaluate a checkpoint in it"
        )
    return best, recipe


def recipe_of_model(folder: Path, overrides: list[str]):
    """The recipe of a model folder that has none: towers from its configuration, data from the user."""
    from clip_itm.reading import read_json
    from clip_itm.recipe import apply_overrides, parse_recipe

    backbone = read_json(folder / "config.json", "the configuration of a model").get("backbone")
    if backbone is None:
        raise ValueError(f"{folder}: config.json names no backbone, so this is not a model of clip-itm")
    content = apply_overrides({"backbone": backbone}, overrides)
    if "data" not in content:
        raise ValueError(
            f"{folder}: this model has no recipe that names its data; say what to evaluate it on, such as "
            "--data.source coco --data.root FOLDER (docs/data.md has all sources)"
        )
    return parse_recipe(content, str(folder))
