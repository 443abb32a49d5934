"""`clip-itm audit`: which captions are wrong, by a finished run or by any model, and the data set without them."""

import argparse
from dataclasses import replace
from pathlib import Path

from clip_itm.commands.output import OutputFile, OutputFolder
from clip_itm.visible import counted, say


def add_parser(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "audit",
        help="show the captions that are probably wrong, or write the data without them",
        description="How many captions of a data set are wrong, and which: all pairs by how suspicious they are "
        "(audit.parquet), and the worst with their photos (audit.html). DATA is a folder of photos with a table of "
        "captions or a text file for each, tars, Parquet files, a recipe, or hub:NAME, and is judged by --model; or "
        "give the --run that trained on the data. With --clean-to, also write a data set without the suspects.",
        epilog="If the data have moved: clip-itm audit --run runs/my --data.root FOLDER",
        allow_abbrev=False,
    )
    parser.add_argument("data", nargs="?", metavar="DATA", help="a folder, tars, a recipe, or hub:NAME; needs --model")
    parser.add_argument(
        "--model", help="what judges DATA: a run, a model folder, a name on the Hub, or MODEL:TAG of open_clip"
    )
    parser.add_argument("--run", help="folder of a finished run, instead of DATA and --model")
    parser.add_argument(
        "--split", choices=("train", "val", "test"), default="train", help="which captions (default: train)"
    )
    parser.add_argument(
        "--out",
        type=OutputFolder,
        metavar="DIR",
        help="folder of audit.parquet and audit.html (default: RUN/audit, or audit for DATA)",
    )
    parser.add_argument(
        "--marks",
        action="append",
        default=[],
        metavar="FILE",
        help="what people said about pairs (from clip-itm app, the page, or Label Studio): how many are wrong, which, "
        "and what is right (may be repeated)",
    )
    parser.add_argument(
        "--picture", type=OutputFile, metavar="FILE", help="also draw the worst twelve pairs as a PNG (extra plot)"
    )
    parser.add_argument("--top", type=positive, default=500, metavar="N", help="pairs on the page (default: 500)")
    parser.add_argument(
        "--write",
        nargs="+",
        default=[],
        choices=("csv", "label-studio", "fiftyone"),
        metavar="FORMAT",
        help="also write all pairs for other programs, in the same folder: csv, label-studio (tasks and the interface "
        "to label them), fiftyone (samples)",
    )
    clean = parser.add_argument_group("a cleaned data set")
    clean.add_argument("--clean-to", type=OutputFolder, metavar="DIR", help="write it into this empty folder")
    clean.add_argument(
        "--clean-as",
        choices=("folder", "datasets", "webdataset", "datacomp"),
        help="for --data.source folder (default); Parquet files for datasets.load_dataset; tar files; or the uids that "
        "are kept, for the resharder of DataComp",
    )
    clean.add_argument(
        "--push-to", metavar="NAME", help="also put it on the Hub, as a private data set (--clean-as datasets)"
    )
    clean.add_argument(
        "--copy",
        action="store_true",
        help="with --clean-as folder: also copy the photos, instead of naming where they are",
    )
    clean.add_argument(
        "--force", action="store_true", help="leave out more pairs than can be wrong, and photos that keep no caption"
    )
    clean.add_argument(
        "--leave-out",
        nargs="+",
        default=[],
        metavar="KIND",
        help='leave out all pairs of groups of these kinds, too, such as leak, copies (one of each stays), "file name"',
    )
    which = clean.add_mutually_exclusive_group()
    which.add_argument("--below", type=fraction, metavar="P", help="leave out pairs with a lower probability")
    which.add_argument(
        "--drop-fraction",
        type=fraction,
        metavar="S",
        help="leave out this fraction of the pairs, the worst (default: the share that was found)",
    )
    which.add_argument(
        "--budget",
        type=positive,
        metavar="N",
        help="leave out as many pairs as are found wrong, the worst, but at most N",
    )
    which.add_argument("--by-marks", action="store_true", help="leave out the pairs that were marked wrong in --marks")
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
    numbers = args.below, args.drop_fraction, args.budget
    ways = args.copy, args.force, args.leave_out, args.down_weight, args.by_marks, args.clean_as, args.push_to
    if args.clean_to is None and any((*ways, *(number is not None for number in numbers))):
        raise ValueError(
            "--copy, --force, --leave-out, --below, --drop-fraction, --budget, --by-marks, --down-weight, --clean-as "
            "and --push-to say how to clean; say where with --clean-to"
        )
    layout = args.clean_as or ("datasets" if args.push_to else "folder")
    if args.by_marks and not args.marks:
        raise ValueError("--by-marks leaves out what was marked wrong: name the file of marks with --marks")
    if args.push_to and layout != "datasets":
        raise ValueError(f"--push-to puts Parquet files on the Hub, and --clean-as {layout} writes none: leave it out")
    if args.copy and layout != "folder":
        raise ValueError(f"--copy is of --clean-as folder: what {layout} has of the photos is in its files")
    if (args.run is None) == (args.data is None):
        raise ValueError("say what to audit: DATA with --model, or the --run that trained on the data")
    if (args.model is None) != (args.data is None):
        raise ValueError(
            "DATA is judged by a --model: a run, a model folder, a name on the Hub, or MODEL:TAG of open_clip"
            if args.model is None
            else "--model judges DATA; a --run is judged by what it found, or by its own best model"
        )

    from clip_itm.data.cleaned import check_free
    from clip_itm.data.marked_pairs import read_all_marks
    from clip_itm.offline import require_recipe
    from clip_itm.recipe import load_recipe
    from clip_itm.runs.audited_data import data_to_audit, require_judge

    if args.run is not None:
        require_recipe(load_recipe(args.run, args.overrides), backbone=False)
        own = Path(args.run) / ("audit" if args.split == "train" else f"audit-{args.split}")
    else:
        given = data_to_audit(args.data, args.overrides)
        if given.sentence:
            say(f"{given.title}: {given.sentence}")
        require_recipe(given.recipe, backbone=False)
        require_judge(args.model)
        own = Path("audit")
    out = Path(args.out or own)
    marks = read_all_marks(args.marks)

    if args.clean_to is not None:
        check_free(Path(args.clean_to))
    if args.push_to:
        from clip_itm.runs.publish import data_repo_files

        data_repo_files(args.push_to)

    from clip_itm.auditing.group_page import lines_of_groups, nothing_found
    from clip_itm.auditing.judging import audit_data, audit_run
    from clip_itm.auditing.leaving_out import require_kinds
    from clip_itm.auditing.page import audit_page, facts_of, lines_of_scores
    from clip_itm.auditing.picture import draw_audit
    from clip_itm.auditing.written import PAGE, TABLE, require_audit, require_formats
    from clip_itm.commands.terminal import print_facts, print_lines
    from clip_itm.distributed import process_state
    from clip_itm.files import write_text
    from clip_itm.training.folder import MANIFEST, record_added

    require_audit(out)
    require_formats(out, args.write)
    require_kinds(args.leave_out)
    if args.run is not None:
        audit = audit_run(Path(args.run), args.overrides, args.split)
    else:
        audit = audit_data(given, args.model, args.split)
    if not process_state().is_main_process:
        return 0
    if args.marks:
        audit = audit.with_marks(marks)
    print_facts(f"{audit.title}: {args.split} captions", facts_of(audit))
    audit = replace(audit, top=args.top)
    if audit.groups:
        print_lines("groups", lines_of_groups(audit), left=("group", "advice"))
    else:
        say(f"no groups: {nothing_found(audit)}")
    print_lines("scores", lines_of_scores(audit), left=("score", "probability"))
    is_of_run = args.run is not None and out.resolve() == own.resolve()
    if is_of_run:
        record_added(Path(args.run), f"{own.name}/{TABLE}", f"{own.name}/{PAGE}")
    audit.save(out / TABLE)
    write_text(out / PAGE, audit_page(audit, args.top))
    shown = min(args.top, audit.doubted)
    worst = f"the {shown:,} most suspicious" if shown else "none of them is suspicious"
    say(f"all pairs: {out / TABLE}\n{worst}: {out / PAGE}")
    if args.picture:
        drawn = draw_audit(audit, Path(args.picture))
        say(f"picture: {args.picture}" if drawn else "no picture: no caption is doubted")
    if args.write:
        if is_of_run:
            record_added(Path(args.run), f"{own.name}/{MANIFEST}")
        for name, path in audit.write(*args.write, folder=out).items():
            say(f"{name}: {path}")
    if args.clean_to is not None:
        clean(audit, args, layout)
    return 0


def stopped(args: argparse.Namespace) -> str:
    """What to say when Ctrl-C has stopped the audit."""
    return "stopped; embeddings that were made are kept, and the same command goes on from there"


def clean(audit, args: argparse.Namespace, layout: str) -> None:
    """Write the cleaned data set, and say what became of the pairs."""
    from clip_itm.auditing.cleaning import beside_the_line, kept_pairs, write_kept
    from clip_itm.auditing.leaving_out import left_out
    from clip_itm.commands.terminal import print_lines
    from clip_itm.data.cleaned import require_images

    require_images(audit.splits)
    keep, rule = kept_pairs(
        audit, args.below, args.drop_fraction, args.down_weight, budget=args.budget, by_marks=args.by_marks
    )
    fixed = audit.marked.texts if audit.marked is not None else {}
    if keep.any() and not keep.all():
        header = ("probability", "photo", "caption")
        names = ("left out, nearest to the line first:", "kept, nearest to the line first:")
        for name, rows in zip(names, beside_the_line(audit, keep), strict=True):
            lines = [(f"{row['clean_probability']:.3f}", row["image_id"], row["caption"]) for row in rows]
            say(name)
            print_lines("", [header, *lines], left=header)
    folder = Path(args.clean_to)
    settings = {"down_weight": args.down_weight, "copy_images": args.copy, "force": args.force}
    out = left_out(audit, args.leave_out)
    counts = write_kept(audit, keep, rule, out, folder, layout, **settings)
    for kind, count in out.kinds.items():
        say(f"left out as {kind}: {counted(count, 'pair')}")
    keep = keep & ~out.pairs
    rest = f"{counts['dropped_pairs']:,} left out"
    if counts["dropped_images"]:
        rest += f", and {counted(counts['dropped_images'], 'photo that keeps', 'photos that keep')} no caption"
    if fixed:
        rest += f"; {len(fixed):,} with a caption that a person wrote"
    if not counts["dropped_pairs"] and not args.down_weight:
        rest = f"all of them: {audit.sentence}" if audit.estimate.share == 0 else "all of them"
    say(f"{folder}: {counts['kept_pairs']:,} {audit.name} pairs, {rest}")
    if (wrong := audit.known_wrong) is not None:
        left = wrong & keep
        left[list(fixed)] = False
        say(f"really wrong: {left.sum() / keep.sum():.1%} of the kept pairs, {wrong.mean():.1%} before")
    if layout == "folder":
        say(f"train on it: clip-itm train RECIPE --data.source folder --data.root {folder}")
    if args.push_to:
        from clip_itm.runs.publish import push_data

        say(push_data(folder, args.push_to).commit_url)
