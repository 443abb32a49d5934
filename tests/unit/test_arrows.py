"""The house: imports run downwards, within functions too, and none in a circle."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import clip_itm

PACKAGE = Path(clip_itm.__file__).parent
# Rooms (folders and modules of the package). The ground floor only has to be free of circles. A room of FLOORS, from
# the ground up, may import from itself and from rooms that stand before it in another line.
GROUND = """allocator checkpoint_code checksums digests distributed environment files image_processing import_check
    key_list keys kinds loading lock offline overrides pages precision processing reading renamed resizing seal
    section stand_ins task tree_shaking visible weights yaml_text"""
FLOORS = """
    data evaluation backbones
    calibration encoding similarity
    training
    methods
    configuration
    model
    recipe
    runs
    auditing
    retrieval
    hub verify
    commands
    cli
"""
PUBLIC = "clip_itm"  # `__init__.py`, which imports what a user needs from everywhere, and nothing imports it


def imports() -> dict[str, set[str]]:
    """Every module of the package, and those of the package that it imports anywhere in it."""
    paths = {_name(path): path for path in PACKAGE.rglob("*.py")}
    found: dict[str, set[str]] = {}
    for name, path in paths.items():
        found[name] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                wanted = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name}: imports within the package are absolute"
                wanted = [f"{node.module}.{alias.name}" for alias in node.names]
                wanted = [module if module in paths else node.module for module in wanted]
            else:
                continue
            found[name] |= {module for module in wanted if module in paths}
    return found


def _name(path: Path) -> str:
    return ".".join([PACKAGE.name, *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")


def room(module: str) -> str:
    # the verb that a method brings, `methods/<name>/command.py`, is one of the commands
    return "commands" if module.endswith(".command") else module.split(".")[1]


def test_every_import_runs_downwards():
    floors = dict.fromkeys(GROUND.split(), 0)
    for number, line in enumerate(FLOORS.split("\n")):
        floors |= dict.fromkeys(line.split(), number)
    found = imports()
    assert not [one for one, others in found.items() if PUBLIC in others]
    del found[PUBLIC]
    assert {room(module) for module in found} == floors.keys()
    arrows = {(one, other) for one, others in found.items() for other in others if room(one) != room(other)}
    assert not [(one, other) for one, other in arrows if 0 != floors[room(other)] >= floors[room(one)]]


def test_no_import_runs_in_a_circle():
    try:
        TopologicalSorter(imports()).prepare()
    except CycleError as error:
        raise AssertionError(" imports ".join(reversed(error.args[1]))) from None


def test_there_is_something_to_see():
    found = imports()
    assert len(found) > 200
    assert "clip_itm.model" in found["clip_itm.runs.train"] | found["clip_itm.runs.build"]
    assert any(other.startswith("clip_itm.hub.") for other in found["clip_itm.commands.push"])  # within a function
