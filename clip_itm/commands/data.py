"""`clip-itm data`: look at a data set before training on it, or store its regions in half the space."""

import argparse
from pathlib import Path

from clip_itm.commands.output import OutputFile, OutputFolder
from clip_itm.visible import counted, say


def add_parser(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser("data", help="look at a data set before training on it", allow_abbrev=False)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    check = actions.add_parser(
        "check",
        help="decode every photo, read every caption, and report",
        description="Report counts, caption lengths, duplicate, missing and damaged photos. Exit status 1 when "
        "training would fail, or when splits share photos.",
        epilog="The data set is the recipe's: `clip-itm data check recipes/coco/clip.yaml --data.root ~/coco`.",
        allow_abbrev=False,
    )
    check.add_argument("recipe", help="YAML file; its `data:` section is checked, lengths are in its backbone's tokens")
    check.add_argument("--json", type=OutputFile, metavar="FILE", help="write the whole report there, with every name")
    check.add_argument("--workers", type=int, metavar="N", help="threads that decode photos (default: one per core)")
    half = actions.add_parser(
        "float16",
        help="copy a data set of regions with its features in float16",
        description="A folder in the layout of data.source: regions, in half the space; train with --data.root OUT. "
        "What an earlier, interrupted call wrote is kept.",
        allow_abbrev=False,
    )
    half.add_argument("root", help="folder with *_ims.npy and captions")
    half.add_argument("--out", required=True, type=OutputFolder, metavar="FOLDER", help="folder of the copy")


def run(args: argparse.Namespace) -> int:
    if args.action == "float16":
        return run_float16(args)
    from clip_itm.offline import require_recipe
    from clip_itm.recipe import load_recipe

    recipe = load_recipe(args.recipe, args.overrides)
    require_recipe(recipe, backbone=False)

    from clip_itm.data.check import CheckReport, check_splits
    from clip_itm.data.load import image_checker, load_splits
    from clip_itm.files import write_json

    try:
        splits = load_splits(recipe.data, verify=False)
    except ValueError as error:  # annotations that cannot be read are a finding, too
        report = CheckReport(problems=[str(error)])
    else:
        count_tokens, max_tokens, warnings = None, None, []
        try:
            count_tokens, max_tokens = token_counter(recipe.backbone, splits)
        except (ValueError, OSError) as error:  # the images can be checked without the model's files
            warnings = [f"lengths are in words, because the tokenizer of the backbone cannot be loaded: {error}"]
        read_images = None if recipe.data.cache_images else image_checker(recipe.data)
        report = check_splits(splits, count_tokens, max_tokens, workers=args.workers, read_images=read_images)
        report.warnings[:0] = warnings
        report.problems += refusals(recipe, splits)
    print(report.as_text(), end="")
    if args.json:
        write_json(Path(args.json), report.as_dict())
    return 0 if report.ok else 1


def run_float16(args: argparse.Namespace) -> int:
    if args.overrides:
        raise ValueError(f"{args.overrides[0]}: data float16 reads a folder, not a recipe; it has no such option")
    if not Path(args.root).is_dir():
        raise ValueError(f"{args.root}: there is no such folder; expected one with *_ims.npy and captions")

    from clip_itm.data.region_storage import store_in_half_precision

    written = store_in_half_precision(args.root, args.out)
    size = sum(path.stat().st_size for path in written)
    say(f"{args.out}: {counted(len(written), 'file')} written, {size / 1e9:.2f} GB")
    return 0


def refusals(recipe, splits: dict) -> list[str]:
    """What `clip-itm train` would refuse for other reasons than images and captions."""
    from clip_itm.runs.setup import check_protocols, final_split, make_sampler, noise_of

    if not {"train", "val"} <= splits.keys():
        return []  # reported together with the splits
    found = []
    for refuse in (
        lambda: recipe.noise.needs_neighbours or noise_of(recipe, splits),  # no photo is encoded to check photos
        lambda: make_sampler(recipe, splits["train"]),
        lambda: check_protocols(recipe, final_split(recipe, splits)),
    ):
        try:
            refuse()
        except ValueError as error:
            found.append(str(error))
    return found


def token_counter(backbone, splits: dict):
    """A function from captions to their numbers of tokens, uncut, and the length to which the backbone cuts them."""
    from clip_itm.backbones.build import build_processor
    from clip_itm.processing import clean_text

    captions = splits["train"].pairs.captions.to_pylist() if "train" in splits else []
    processor = build_processor(backbone, captions)

    def count(captions: list[str]) -> list[int]:
        texts = [clean_text(caption, processor.text_cleaning) for caption in captions]
        encoded = processor.tokenizer(texts, truncation=False, return_attention_mask=False, verbose=False)
        return [len(ids) for ids in encoded["input_ids"]]

    return count, processor.max_length
