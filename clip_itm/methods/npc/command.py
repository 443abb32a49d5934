"""`clip-itm bank build | import | info`: NPC's memory of surely clean pairs."""

import argparse
import warnings
from pathlib import Path

from clip_itm.commands.output import OutputFile
from clip_itm.visible import say

DEFAULT_RHO = 0.99


def add_parser(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser("bank", help="build, import or inspect NPC's memory bank", allow_abbrev=False)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    build = actions.add_parser(
        "build",
        help="find the surely clean pairs of a training split, and the nearest of them for every photo and caption",
        description="Score all training pairs of a recipe with its backbone before training, or with the best model of "
        "a run (--run), and save the memory bank that `head.bank` reads.",
        allow_abbrev=False,
    )
    model = build.add_mutually_exclusive_group(required=True)
    model.add_argument("recipe", nargs="?", help="YAML file")
    model.add_argument("--run", metavar="DIR", help="finished run: its best model, its data, its noise")
    build.add_argument(
        "--out", type=OutputFile, default="bank.npz", metavar="FILE.npz", help="must not exist yet (default: bank.npz)"
    )
    build.add_argument(
        "--rho", type=float, help=f"posterior above which a pair is clean (default: head.rho, else {DEFAULT_RHO})"
    )
    build.add_argument(
        "--weights",
        metavar="FILE",
        help="clean_probability.npz of these pairs: its probabilities say which are clean (default: head.weights of "
        "npc, else the losses)",
    )

    imported = actions.add_parser(
        "import",
        help="turn a published pair of .npy files into a memory bank",
        description="Read RATIO_mbank_img_idx.npy and RATIO_mbank_txt_idx.npy for the training pairs of a recipe. The "
        "files do not name the noise they were made for: the recipe has to have it.",
        allow_abbrev=False,
    )
    imported.add_argument("folder", help="folder of the files, or one that has annotations/ or memory_bank/")
    imported.add_argument("--recipe", required=True, help="YAML file")
    imported.add_argument("--ratio", type=float, help="noise ratio in the file names (default: that of the noise)")
    imported.add_argument("--out", required=True, type=OutputFile, metavar="FILE.npz", help="must not exist yet")

    info = actions.add_parser("info", help="describe a memory bank", allow_abbrev=False)
    info.add_argument("file", help="a saved .npz")


def run(args: argparse.Namespace) -> int:
    if args.action == "info":
        from clip_itm.commands.terminal import print_facts
        from clip_itm.methods.npc.bank import MemoryBank

        bank = MemoryBank.load(args.file)
        print_facts(args.file, _facts(bank))
        return 0

    from clip_itm.files import is_stream

    if not is_stream(args.out):
        if Path(args.out).suffix != ".npz":
            raise ValueError(f"--out {args.out}: a memory bank is saved as .npz")
        if Path(args.out).exists():
            raise _taken(args)
    return _import(args) if args.action == "import" else _build(args)


def _taken(args: argparse.Namespace) -> ValueError:
    return ValueError(f"--out {args.out} already exists; delete it or choose another name")


def _save(bank, args: argparse.Namespace) -> None:
    try:
        bank.save(args.out, exclusive=True)
    except FileExistsError:  # of another process, just now
        raise _taken(args) from None
    say(f"saved in {args.out}")


def _build(args: argparse.Namespace) -> int:
    from clip_itm.commands.terminal import print_facts
    from clip_itm.distributed import process_state
    from clip_itm.methods.npc.trainer import bank_of_pairs
    from clip_itm.recipe import load_recipe
    from clip_itm.runs.folder import RunFolder
    from clip_itm.runs.setup import load_data, make_encoder, make_model, saved_encoder

    state = process_state()
    if args.run:
        run = RunFolder(Path(args.run))
        if not run.has_model:
            raise ValueError(f"{args.run}: this run is not finished (it has no best/): train it to its end")
        best = run.model
        noise = ["--noise.file", str(best / "noise.npz"), "--noise.ratio", "0"]
        recipe = load_recipe(best, [*noise, *args.overrides])
        data = load_data(recipe)
        found = _given(recipe, data, args)
        encoder = saved_encoder(best, recipe, data.image_cache)
        origin = f"best model of {args.run}"
    else:
        recipe = load_recipe(args.recipe, args.overrides)
        if (random := recipe.backbone.random_part) and state.is_main_process:
            warnings.warn(
                f"{random} of this backbone starts from random weights, so its losses say nothing about the captions "
                "and this bank is useless. Let a run warm up first and build its own (head.warmup_epochs), or take a "
                "trained model (clip-itm bank build --run DIR).",
                stacklevel=1,
            )
        data = load_data(recipe)
        found = _given(recipe, data, args)
        encoder = make_encoder(recipe, *make_model(recipe, data.splits), data.image_cache)
        origin = f"{recipe.backbone.kind} before training"
    embeddings = encoder.encode(data.train)
    if not state.is_main_process:
        return 0
    rho = getattr(recipe.head, "rho", DEFAULT_RHO) if args.rho is None else args.rho
    name = f"{origin}, recipe {recipe.sha256[:12]}" + ("" if found is None else f", weights {found.sha256[:12]}")
    bank = bank_of_pairs(embeddings, data, encoder.model, rho, name, recipe.training.seed, found)
    print_facts(f"memory bank of {origin}", _facts(bank) + _truth(bank, data.noise.is_clean(data.train.pairs)))
    _save(bank, args)
    return 0


def _given(recipe, data, args: argparse.Namespace):
    """The probabilities of `--weights`, else of `head.weights` of an npc recipe, else None."""
    from clip_itm.methods.npc.configuration import NpcHeadConfig
    from clip_itm.training.clean_probability import probabilities_of

    of_recipe = recipe.head.weights if isinstance(recipe.head, NpcHeadConfig) else None
    for key, file in (("--weights", args.weights), ("head.weights", of_recipe)):
        if file is not None:
            return probabilities_of(data.noise, file, key)
    return None


def _import(args: argparse.Namespace) -> int:
    from clip_itm.commands.terminal import print_facts
    from clip_itm.data.load import load_splits
    from clip_itm.data.marked_training import with_marks
    from clip_itm.methods.npc.legacy_bank import find_legacy_bank, read_legacy_bank
    from clip_itm.recipe import load_recipe
    from clip_itm.runs.setup import noise_of

    recipe = load_recipe(args.recipe, args.overrides)
    splits = load_splits(recipe.data)
    if "train" not in splits:
        raise ValueError("this data set has no train split, and a memory bank belongs to training pairs")
    splits, noise = with_marks(splits, noise_of(recipe, splits), recipe.data.marks)
    pairs = splits["train"].pairs
    if args.ratio is None and noise.seed is None:  # imported: its ratio is a count
        raise ValueError(f"the nominal ratio of {recipe.noise.file} is not known: give --ratio, as in the file names")
    files = find_legacy_bank(args.folder, noise.ratio if args.ratio is None else args.ratio)
    bank = read_legacy_bank(*files, pairs, noise)
    print_facts(f"memory bank of {files[0].parent}", _facts(bank))
    _save(bank, args)
    return 0


def _facts(bank) -> list[tuple[str, str]]:
    rows = [
        ("model", bank.model),
        ("noise sha256", bank.noise_sha256),
        ("sha256", bank.sha256),
        ("photos", f"{len(bank.image_entry):,}"),
        ("training pairs", f"{len(bank.caption_entry):,}"),
    ]
    if bank.posterior is None:
        return [*rows, ("built by", "another program (no losses and posteriors in it)")]
    clean, total = bank.clean, len(bank.caption_entry)
    own_entry = ("clean captions that are their own entry", f"{(bank.caption_entry[clean] == clean).mean():.1%}")
    share = f"{len(clean):,} ({len(clean) / total:.1%})"
    if bank.mixture is None:
        return [*rows, (f"clean pairs (weight above {bank.rho:g})", share), own_entry]
    for index, name in enumerate(("clean", "wrong")):
        mean, deviation = bank.mixture.means[index], bank.mixture.variances[index] ** 0.5
        percent = f"{bank.mixture.weights[index]:.1%} of the pairs"
        rows.append((f"losses, {name} component", f"mean {mean:.3f}, deviation {deviation:.3f}, {percent}"))
    return [
        *rows,
        (f"clean pairs (posterior above {bank.rho:g})", share),
        ("left out below the clean mean", f"{bank.below_clean_mean_rejected:,}"),
        own_entry,
    ]


def _truth(bank, is_clean) -> list[tuple[str, str]]:
    """How well the losses (or given weights) and the clean set match the injected noise; empty if there is none."""
    from clip_itm.methods.npc.trainer import bank_against_truth

    known = bank_against_truth(bank, is_clean)
    if known["auc"] is None:
        return []
    scored = "weight" if bank.mixture is None else "loss"
    return [
        ("right captions among the clean pairs", f"{known['purity']:.1%} (of all: {is_clean.mean():.1%})"),
        (f"AUC of the {scored} against the injected noise", f"{known['auc']:.3f}"),
    ]
