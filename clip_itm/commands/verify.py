"""`clip-itm verify PATH`: stored files, compared with their checksums."""

import argparse
from pathlib import Path

from clip_itm.visible import say


def add_parser(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "verify",
        help="find damaged files of a run, model, cache, index or bank",
        description="Read every file in PATH that has a checksum and compare. Exit status 1 if one is damaged or "
        "missing; each is named.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "path", help="run (or a folder of runs), model, cache (data.cache_dir), index, bank or noise file"
    )


def run(args: argparse.Namespace) -> int:
    if args.overrides:
        raise ValueError(f"{args.overrides[0]}: verify takes no keys of a recipe")

    from tqdm import tqdm

    from clip_itm.verify import total_size, verify

    where = Path(args.path)
    with tqdm(total=total_size(where), unit="B", unit_scale=True, desc="reading", leave=False) as bar:
        parts = verify(where, bar.update)
    show(where, parts)
    damages = [damage for part in parts for damage in part.damages]
    say("\n".join([f"DAMAGED  {damage}" for damage in damages] or ["no damage found"]))
    if any(part.without for part in parts):
        say("Files without a checksum are of an earlier clip_itm, of other programs, or made to be changed.")
    return 1 if damages else 0


def show(where: Path, parts: list) -> None:
    from rich.table import Table

    from clip_itm.commands.terminal import cell, print_table

    table = Table(title=cell(f"{where}: compared with checksums"), title_justify="left")
    table.add_column("", overflow="fold")
    for column in ("files", "bytes", "damaged", "without checksum"):
        table.add_column(column, justify="right")
    for part in parts:
        name = part.where.relative_to(where).as_posix() if part.where.is_relative_to(where) else part.where.name
        counts = (part.files, part.bytes, len(part.damages), len(part.without))
        table.add_row(cell(name), *(f"{count:,}" for count in counts), style="bold red" if part.damages else None)
    print_table(table)
