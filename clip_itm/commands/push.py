"""`clip-itm push`: a model with its code and card to the Hub, and a Space that shows it."""

import argparse
from pathlib import Path

from clip_itm.visible import counted, say


def add_parser(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "push",
        help="put a model, its card and code, and an app on the Hub",
        description="One commit with the best model of a run, or with a saved model: weights, processor, the code that "
        "loads it without this package, recipe, hashes and model card. Log in first, with `hf auth login`.",
        allow_abbrev=False,
    )
    parser.add_argument("model", help="run folder or model folder")
    parser.add_argument("repo", help="name on the Hub, such as me/my-model; created if it does not exist")
    parser.add_argument(
        "--index",
        action="append",
        default=[],
        metavar="DIR",
        help="also push this index from clip-itm index, below index/; repeat it for one of photos and one of captions",
    )
    parser.add_argument("--space", action="store_true", help="also push a Gradio Space of the same name that shows it")
    parser.add_argument(
        "--license",
        metavar="NAME",
        help="licence of the weights, such as mit (default: that of the base model if its card is here, else none)",
    )
    parser.add_argument("--private", action="store_true", help="make new repositories private")
    parser.add_argument("--revision", metavar="NAME", help="branch of the model to push to (default: main)")
    parser.add_argument("--message", metavar="TEXT", help="message of the commit")
    parser.add_argument("--dry-run", action="store_true", help="list the files and show the card; send nothing")


def run(args: argparse.Namespace) -> int:
    from clip_itm.hub.push import files_with_indexes
    from clip_itm.hub.space import space_files
    from clip_itm.runs.publish import log_in, upload

    indexes = [Path(where) for where in args.index]
    pushes = {"model": files_with_indexes(Path(args.model), args.repo, indexes, args.space, args.license)}
    if args.space:
        pushes["space"] = space_files(args.repo, args.revision, with_index=bool(indexes))
    if args.dry_run:
        for kind, files in pushes.items():
            show(kind, args.repo, files)
        say(pushes["model"]["README.md"].decode())
        return 0
    log_in()
    for kind, files in pushes.items():
        commit = upload(
            files,
            args.repo,
            message=args.message or f"Upload {kind} with clip-itm",
            kind=kind,
            private=args.private or None,
            revision=args.revision if kind == "model" else None,
        )
        say(commit.commit_url)
    return 0


def show(kind: str, repo: str, files: dict[str, Path | bytes]) -> None:
    """Print a table of what would be pushed."""
    from rich.table import Table

    from clip_itm.commands.terminal import cell, print_table

    sizes = {name: len(file) if isinstance(file, bytes) else file.stat().st_size for name, file in files.items()}
    table = Table(title=cell(f"{kind} {repo}"), title_justify="left")
    table.add_column("file", overflow="fold")
    table.add_column("bytes", justify="right")
    for name, size in sizes.items():
        table.add_row(cell(name), f"{size:,}")
    table.add_section()
    table.add_row(counted(len(sizes), "file"), f"{sum(sizes.values()):,}")
    print_table(table)
