"""`clip-itm audit --run RUN`: which training captions are wrong, and the data set without them."""

import argparse
from pathlib import Path

from clip_itm.commands.output import OutputFolder
from clip_itm.visible import say


def add_parser(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "audit",
        help="show the captions of a run that are probably wrong, or write the data without them",
        description="List all training pairs of a finished run by how suspicious they are (audit.parquet), and show "
        "the worst with their photos (audit.html). With --clean-to, also write a data set without the suspects.",
        epilog="If the data have moved: clip-itm audit --run runs/my --data.root FOLDER",
        allow_abbrev=False,
    )
    parser.add_argument("--run", required=True, help="folder of a finished run")
    parser.add_argument(
        "--out", type=OutputFolder, metavar="DIR", help="folder of audit.parquet and audit.html (default: RUN/audit)"
    )
    parser.add_argument("--top", type=positive, default=500, metavar="N", help="pairs on the page (default: 500)")
    clean = parser.add_argument_group("a cleaned data set, for --data.source folder")
    clean.add_argument("--clean-to", type=OutputFolder, metavar="DIR", help="write it into this empty folder")
    clean.add_argument("--copy", action="store_true", help="copy the photos, too, instead of naming where they are")
    which = clean.add_mutually_exclusive_group()
    which.add_argument(
        "--below", type=fraction, metavar="P", help="leave out pairs of a lower probability (default: 0.5)"
    )
    which.add_argument(
        "--drop-fraction", type=fraction, metavar="S", help="leave out this fraction of the pairs, the worst"
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
    if args.clean_to is None and (args.copy or args.down_weight or (args.below, args.drop_fraction) != (None, None)):
        raise ValueError(
            "--copy, --below, --drop-fraction and --down-weight say how to clean; say where with --clean-to"
        )

    from clip_itm.data.cleaned import check_free
    from clip_itm.offline import require_recipe
    from clip_itm.recipe import load_recipe

    require_recipe(load_recipe(args.run, args.overrides), backbone=False)
    own = Path(args.run) / "audit"
    out = Path(args.out or own)

    if args.clean_to is not None:
        check_free(Path(args.clean_to))

    from clip_itm.auditing.page import audit_page, facts_of
    from clip_itm.auditing.table import PAGE, TABLE, Audit, require_audit
    from clip_itm.commands.terminal import print_facts
    from clip_itm.distributed import process_state
    from clip_itm.files import write_text
    from clip_itm.training.folder import record_added

    require_audit(out)
    audit = Audit.of_run(Path(args.run), args.overrides)
    if not process_state().is_main_process:
        return 0
    print_facts(f"{audit.run}: training captions", facts_of(audit))
    if out.resolve() == own.resolve():
        record_added(audit.run, f"audit/{TABLE}", f"audit/{PAGE}")
    audit.save(out / TABLE)
    write_text(out / PAGE, audit_page(audit, args.top))
    shown = min(args.top, len(audit.clean.values))
    say(f"all pairs: {out / TABLE}\nthe {shown} most suspicious: {out / PAGE}")
    if args.clean_to is not None:
        clean(audit, args)
    return 0


def clean(audit, args: argparse.Namespace) -> None:
    """Write the cleaned data set, and say what became of the pairs."""
    import numpy as np

    from clip_itm.auditing.table import THRESHOLD
    from clip_itm.data.cleaned import write_cleaned

    values, weight = audit.clean.values, audit.train.pairs.weight
    keep = np.ones(len(values), dtype=bool)
    if args.down_weight:
        rule, weight = {"down_weight": True}, values if weight is None else weight * values
    elif args.drop_fraction is not None:
        rule = {"drop_fraction": args.drop_fraction}
        keep[audit.clean.order()[: round(args.drop_fraction * len(keep))]] = False
    else:
        rule = {"below": THRESHOLD if args.below is None else args.below}
        keep = values >= rule["below"]
    origin = {
        "run": str(audit.run.absolute()),
        "recipe_sha256": audit.recipe_sha256,
        "noise_sha256": audit.noise.sha256,
        "train_sha256": audit.train.sha256,
        "method": audit.clean.method,
        "rule": rule,
    }
    if (wrong := audit.known_wrong) is not None:
        origin["known_wrong"] = {"kept": int((wrong & keep).sum()), "dropped": int((wrong & ~keep).sum())}
    folder = Path(args.clean_to)
    counts = write_cleaned(folder, audit.splits, audit.noise, keep, weight, origin, args.copy)
    rest = f"{counts['dropped_pairs']:,} left out"
    if counts["dropped_images"]:
        rest += f", and {counts['dropped_images']:,} photos that keep no caption"
    say(f"{folder}: {counts['kept_pairs']:,} training pairs, {rest}")
    if wrong is not None:
        say(f"really wrong: {wrong[keep].mean():.1%} of the kept pairs, {wrong.mean():.1%} before")
    say(f"train on it: clip-itm train RECIPE --data.source folder --data.root {folder}")
