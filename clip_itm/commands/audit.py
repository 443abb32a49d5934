"""`clip-itm audit`: which captions are wrong, by a finished run or by any model, and the data set without them."""

import argparse
from pathlib import Path

from clip_itm.commands.output import OutputFolder
from clip_itm.visible import say


def add_parser(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "audit",
        help="show the captions that are probably wrong, or write the data without them",
        description="How many captions of a data set are wrong, and which: all pairs by how suspicious they are "
        "(audit.parquet), and the worst with their photos (audit.html). DATA is a folder of photos with a table of "
        "captions, a recipe, or hub:NAME, and is judged by --model; or give the --run that trained on the data. With "
        "--clean-to, also write a data set without the suspects.",
        epilog="If the data have moved: clip-itm audit --run runs/my --data.root FOLDER",
        allow_abbrev=False,
    )
    parser.add_argument("data", nargs="?", metavar="DATA", help="a folder, a recipe, or hub:NAME; needs --model")
    parser.add_argument(
        "--model", help="who judges DATA: a run, a model folder, a name on the Hub, or MODEL:TAG of open_clip"
    )
    parser.add_argument("--run", help="folder of a finished run, in place of DATA and --model")
    parser.add_argument(
        "--split", choices=("train", "val", "test"), default="train", help="which captions (default: train)"
    )
    parser.add_argument(
        "--out",
        type=OutputFolder,
        metavar="DIR",
        help="folder of audit.parquet and audit.html (default: RUN/audit, or audit for DATA)",
    )
    parser.add_argument("--top", type=positive, default=500, metavar="N", help="pairs on the page (default: 500)")
    clean = parser.add_argument_group("a cleaned data set, for --data.source folder")
    clean.add_argument("--clean-to", type=OutputFolder, metavar="DIR", help="write it into this empty folder")
    clean.add_argument("--copy", action="store_true", help="copy the photos, too, instead of naming where they are")
    clean.add_argument(
        "--force", action="store_true", help="leave out more pairs than can be wrong, and photos without a caption left"
    )
    which = clean.add_mutually_exclusive_group()
    which.add_argument("--below", type=fraction, metavar="P", help="leave out pairs of a lower probability")
    which.add_argument(
        "--drop-fraction",
        type=fraction,
        metavar="S",
        help="leave out this fraction of the pairs, the worst (default: the share that was found)",
    )
    which.add_argument("--down-weight", action="store_true", help="keep all pairs, weighted by their probability")


def positive(word: str) -> int:
    if (number := int(word)) < 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {word}")
    return number


def fraction(word: str) -> float:
    if not 0 <= (number := float(word)) <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {word}")
    return number


def run(args: argparse.Namespace) -> int:
    ways = args.copy, args.force, args.down_weight, args.below is not None, args.drop_fraction is not None
    if args.clean_to is None and any(ways):
        raise ValueError(
            "--copy, --force, --below, --drop-fraction and --down-weight say how to clean; say where with --clean-to"
        )
    if (args.run is None) == (args.data is None):
        raise ValueError("say what to audit: DATA with --model, or the --run that trained on the data")
    if (args.model is None) != (args.data is None):
        raise ValueError(
            "DATA is judged by a --model: a run, a model folder, a name on the Hub, or MODEL:TAG of open_clip"
            if args.model is None
            else "--model judges DATA; a --run is judged by what it found, or by its own best model"
        )

    from clip_itm.data.cleaned import check_free
    from clip_itm.offline import require_recipe
    from clip_itm.recipe import load_recipe
    from clip_itm.runs.audited_data import data_to_audit, require_judge

    if args.run is not None:
        require_recipe(load_recipe(args.run, args.overrides), backbone=False)
        own = Path(args.run) / ("audit" if args.split == "train" else f"audit-{args.split}")
    else:
        given = data_to_audit(args.data, args.overrides)
        require_recipe(given.recipe, backbone=False)
        require_judge(args.model)
        own = Path("audit")
    out = Path(args.out or own)

    if args.clean_to is not None:
        check_free(Path(args.clean_to))

    from clip_itm.auditing.judging import audit_data, audit_run
    from clip_itm.auditing.page import audit_page, facts_of, lines_of_scores
    from clip_itm.auditing.table import PAGE, TABLE, require_audit
    from clip_itm.commands.terminal import print_facts, print_lines
    from clip_itm.distributed import process_state
    from clip_itm.files import write_text
    from clip_itm.training.folder import record_added

    require_audit(out)
    if args.run is not None:
        audit = audit_run(Path(args.run), args.overrides, args.split)
    else:
        audit = audit_data(given, args.model, args.split)
    if not process_state().is_main_process:
        return 0
    print_facts(f"{audit.title}: {args.split} captions", facts_of(audit))
    print_lines("scores", lines_of_scores(audit), left=("score", "probability"))
    if args.run is not None and out.resolve() == own.resolve():
        record_added(Path(args.run), f"{own.name}/{TABLE}", f"{own.name}/{PAGE}")
    audit.save(out / TABLE)
    write_text(out / PAGE, audit_page(audit, args.top))
    shown = min(args.top, audit.doubted)
    worst = f"the {shown:,} most suspicious" if shown else "none of them is suspicious"
    say(f"all pairs: {out / TABLE}\n{worst}: {out / PAGE}")
    if args.clean_to is not None:
        clean(audit, args)
    return 0


def stopped(args: argparse.Namespace) -> str:
    """What to say when Ctrl-C has stopped it."""
    return "stopped; embeddings that were made are kept, and the same command goes on from there"


def clean(audit, args: argparse.Namespace) -> None:
    """Write the cleaned data set, and say what became of the pairs."""
    from clip_itm.auditing.cleaning import beside_the_line, kept_pairs, objections
    from clip_itm.commands.terminal import print_lines
    from clip_itm.data.cleaned import require_images, write_cleaned

    require_images(audit.splits)
    keep, rule = kept_pairs(audit, args.below, args.drop_fraction, args.down_weight)
    if keep.any() and not keep.all():
        header = ("probability", "photo", "caption")
        names = ("left out, nearest to the line first:", "kept, nearest to the line first:")
        for name, rows in zip(names, beside_the_line(audit, keep), strict=True):
            lines = [(f"{row['clean_probability']:.3f}", row["image_id"], row["caption"]) for row in rows]
            say(name)
            print_lines("", [header, *lines], left=header)
    against = objections(audit, keep) if keep.any() else []
    if against and not args.force:
        raise ValueError(
            f"{'; '.join(against)}. Look at them first; leave out fewer (--drop-fraction, --below), keep all by their "
            "weight (--down-weight), or do it with --force"
        )
    values, weight = audit.clean.values, audit.split.pairs.weight
    if args.down_weight:
        weight = values if weight is None else weight * values
    origin = {
        **({"data": audit.title, "model": audit.model} if audit.run is None else {"run": str(audit.run.absolute())}),
        "recipe_sha256": audit.recipe_sha256,
        "noise_sha256": audit.noise.sha256,
        f"{audit.name}_sha256": audit.split.sha256,
        "method": audit.clean.method,
        "trained_on": audit.is_trained,
        "wrong_share": dict(zip(("share", "low", "high"), audit.share, strict=True)),
        "rule": rule | ({"force": True} if against else {}),
    }
    if (wrong := audit.known_wrong) is not None:
        origin["known_wrong"] = {"kept": int((wrong & keep).sum()), "dropped": int((wrong & ~keep).sum())}
    folder = Path(args.clean_to)
    counts = write_cleaned(folder, audit.splits, audit.noise, keep, weight, origin, args.copy, audit.name)
    rest = f"{counts['dropped_pairs']:,} left out"
    if counts["dropped_images"]:
        rest += f", and {counts['dropped_images']:,} photos that keep no caption"
    if not counts["dropped_pairs"] and not args.down_weight:
        rest = f"all of them: {audit.sentence}" if audit.estimate.share == 0 else "all of them"
    say(f"{folder}: {counts['kept_pairs']:,} {audit.name} pairs, {rest}")
    if wrong is not None:
        say(f"really wrong: {wrong[keep].mean():.1%} of the kept pairs, {wrong.mean():.1%} before")
    say(f"train on it: clip-itm train RECIPE --data.source folder --data.root {folder}")
