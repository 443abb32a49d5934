"""`clip-itm noise make | info | import`: draw caption noise once, look at it, read published files."""

import argparse

from clip_itm.commands.output import OutputFile
from clip_itm.visible import say


def add_parser(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser("noise", help="draw, inspect or import caption noise", allow_abbrev=False)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    make = actions.add_parser(
        "make",
        help="draw noise for the training captions of a recipe",
        description="Draw what the `noise:` section says and save it, so that every run can use the very same pairs "
        "(--noise.file FILE). For example: clip-itm noise make recipes/flickr30k/clip.yaml --out noise.npz "
        "--noise.ratio 0.4 --noise.seed 99",
        allow_abbrev=False,
    )
    make.add_argument("recipe", help="YAML file; its `data:` and `noise:` sections are used")

    info = actions.add_parser(
        "info",
        help="print the facts of a draw",
        description="Print ratio, level, seed and hash of a noise file; with a recipe also how many of its training "
        "pairs are wrong and how many right captions the photos keep.",
        allow_abbrev=False,
    )
    info.add_argument("file", help="a saved .npz; with a recipe also a published .npy or .txt")
    info.add_argument("recipe", nargs="?", help="YAML file whose training captions the noise belongs to")

    imported = actions.add_parser(
        "import",
        help="turn a published .npy index or noisy caption file into a noise file",
        description="Read photo numbers per caption or per photo (.npy), or the training captions in noisy order "
        "(.txt), check them against the training captions of a recipe, and save the result.",
        allow_abbrev=False,
    )
    imported.add_argument("file", help=".npy or .txt")
    imported.add_argument("recipe", help="YAML file whose training captions the noise belongs to")

    for action in (make, imported):
        action.add_argument(
            "--out",
            required=True,
            type=OutputFile,
            metavar="FILE.npz",
            help="where to save; never overwrites other noise",
        )


def run(args: argparse.Namespace) -> int:
    if args.action == "info":
        return _info(args)
    from clip_itm.offline import require_recipe
    from clip_itm.recipe import load_recipe

    recipe = load_recipe(args.recipe, args.overrides)
    if args.action == "import":
        section = recipe.noise.model_copy(update={"file": args.file, "ratio": 0.0})
        recipe = recipe.model_copy(update={"noise": section})
    require_recipe(recipe, backbone=recipe.noise.needs_neighbours)

    from clip_itm.runs.setup import noise_of  # here, so that a mistake is reported before torch is imported

    splits = _splits(recipe)
    noise = noise_of(recipe, splits)
    noise.save(args.out)
    say(_table(noise.statistics(splits["train"].pairs)))
    say(f"saved in {args.out}")
    return 0


def _info(args: argparse.Namespace) -> int:
    from clip_itm.data.configuration import NoiseSection
    from clip_itm.data.load_noise import load_noise
    from clip_itm.data.noise import CaptionNoise
    from clip_itm.recipe import load_recipe

    if args.recipe is None:
        if not args.file.endswith(".npz"):
            raise ValueError(f"{args.file}: a published file means nothing without its captions; give a recipe, too")
        noise = CaptionNoise.load(args.file)
        say(_table({**noise.description(), "pairs": len(noise.source)}))
        return 0
    pairs = _splits(load_recipe(args.recipe, args.overrides))["train"].pairs
    say(_table(load_noise(NoiseSection(file=args.file), pairs).statistics(pairs)))
    return 0


def _splits(recipe) -> dict:
    from clip_itm.data.load import load_splits

    splits = load_splits(recipe.data)
    if "train" not in splits:
        raise ValueError("this data set has no train split, and only training captions carry noise")
    return splits


LABELS = {
    "pairs": "training pairs",
    "images": "images",
    "level": "level",
    "neighbours": "nearest photos, one of whose captions is drawn",
    "model": "nearest by the features of",
    "without_noun": "pairs without a noun in common, shuffled",
    "seed": "seed",
    "ratio": "nominal ratio",
    "other_caption": "pairs with another caption",
    "other_text": "pairs with another wording",
    "other_image": "pairs with a caption of another photo",
    "sha256": "sha256",
    "captions_sha256": "sha256 of the captions",
}


def _table(facts: dict) -> str:
    """The facts in two columns; at the end, a line per number of right captions."""
    rows = []
    for key, label in LABELS.items():
        if key in facts:
            value = facts[key]
            shown = f"{value:.3%}" if key.startswith("other_") else "not drawn here" if value is None else f"{value}"
            rows.append((label, shown))
    for count, fraction in enumerate(facts.get("images_by_right_captions", [])):
        rows.append((f"photos that keep {count} right caption{'s' * (count != 1)}", f"{fraction:.3%}"))
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"{label:<{width}}  {value}" for label, value in rows)
