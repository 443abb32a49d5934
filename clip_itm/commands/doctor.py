"""`clip-itm doctor`: what is installed, on what machine, and where things are kept, to paste into a report."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from clip_itm.commands.output import OutputFile
from clip_itm.visible import say


def add_parser(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "doctor",
        help="say what is installed, on what machine, and what is broken",
        description="Versions, extras, devices, caches and free space, as text to paste into a report. It needs no "
        "network, and shows no values of secrets. Exit status 1 if a package is missing or cannot be imported.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", type=OutputFile, metavar="FILE", help="write everything there (-: to the terminal)")
    parser.add_argument("--cache-dir", metavar="FOLDER", help="caches of clip_itm (default: ~/.cache/clip_itm)")


def run(args: argparse.Namespace) -> int:
    if args.overrides:
        raise ValueError(f"{args.overrides[0]}: doctor takes no keys of a recipe")

    from clip_itm.environment import survey
    from clip_itm.files import write_json

    say("importing every package once, which can take a minute", sys.stderr)
    found = survey(Path(args.cache_dir or "~/.cache/clip_itm").expanduser().absolute())
    say("\n".join(lines_of(found)))
    if args.json:
        write_json(Path(args.json), found)
    return 1 if found["problems"] else 0


def lines_of(found: dict) -> Iterator[str]:
    """The text of a survey, one fact per line."""
    for name in ("clip_itm", "python", "prefix", "platform", "encoding", "processors"):
        yield _line(name, found[name])
    if found["memory"]:
        yield _line("memory", f"{_gigabytes(found['memory']['bytes'])}, {_gigabytes(found['memory']['free'])} free")
    yield from (_line(name, value) for name, value in _devices(found["devices"]))
    yield _line("Hub", found["hub"])
    yield "packages"
    yield from (f"  {_line(name, _state(state))}" for name, state in found["packages"].items())
    yield "extras"
    for extra, parts in found["extras"].items():
        yield f"  {_line(extra, ', '.join(f'{name} {_state(state)}' for name, state in parts.items()))}"
    yield "places"
    yield from (f"  {_line(place['name'], _place(place))}" for place in found["places"])
    if found["variables"]:
        yield "environment variables"
        yield from (f"  {name}={value}" for name, value in found["variables"].items())
    yield "problems" if found["problems"] else "no problem found"
    yield from (f"  {problem}" for problem in found["problems"])


def _line(name: str, value: object) -> str:
    return f"{name:<22}{value}"


def _devices(devices: dict) -> Iterator[tuple[str, str]]:
    if not devices:
        yield "torch", "cannot be imported"
        return
    yield "torch", f"built for {devices['built for']}, {devices['threads']} threads{', MPS' if devices['mps'] else ''}"
    for number, gpu in enumerate(devices["gpus"]):
        yield f"GPU {number}", f"{gpu['name']}, {_gigabytes(gpu['bytes'])}, compute capability {gpu['capability']}"
    if not devices["gpus"]:
        yield "GPU", "none"


def _state(state: dict) -> str:
    if state["version"] is None:
        return "not installed"
    fault = "BROKEN" if state["error"] else "" if state["fits"] else f"NOT {state['needs']}"
    return f"{state['version']}{' ' if fault else ''}{fault}"


def _place(place: dict) -> str:
    words = [place["path"]]
    if "files" in place:
        more = "" if place["is_all"] else "more than "
        words.append(
            f"{more}{_gigabytes(place['bytes'])} in {place['files']:,} {'file' if place['files'] == 1 else 'files'}"
        )
    elif not place["exists"]:
        words.append("not there yet")
    if not place["writable"]:
        words.append("NOT WRITABLE")
    if place["free"] is not None:
        words.append(f"{_gigabytes(place['free'])} free on its disk")
    return ", ".join(words)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
