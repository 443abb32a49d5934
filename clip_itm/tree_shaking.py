"""The definitions of this package that some names need, as a few flat modules: one for every room that has any.

Starting from these names, every function, class and constant that is reached is copied as it is in its source; the rest
of its module is not. All of `clip_itm/backbones/` becomes `clip_itm_backbones.py`, `clip_itm/model.py` becomes
`clip_itm_model.py`; they can import each other because no room imports upwards. On the way

- a `match config.kind` keeps the case of the kind that is asked for, and so does the union of sections of a recipe;
- a function or branch that begins with an import from this package is for the package alone, and so are functions of a
  few names (`OMITTED`): they become an error that says so;
- calls at the top of a module, which register something, are left out.
"""

import ast
import sys
import textwrap
from collections.abc import Iterable, Iterator
from functools import cache
from graphlib import TopologicalSorter
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from clip_itm.kinds import METHODS

# functions of a head, of the section of a backbone, and of its kind, which a saved model does not need
OMITTED = ("loss", "losses", "hub_parts", "build_processor", "processor")
LINE = 120  # characters
FOR_THE_PACKAGE = "this needs the package clip-itm, whose README says how to install it"
STAND_INS = dict.fromkeys(("clip_itm.checksums", "clip_itm.loading", "clip_itm.renamed"), "clip_itm.stand_ins")
Name = tuple[str, str]
"""A module, and a name in it."""


class Module(NamedTuple):
    """What the top level of a module binds: to statements, to names of this package, to imports of others."""

    name: str
    lines: list[str]
    title: str
    statements: list[ast.stmt]
    ours: dict[str, Name]
    others: dict[str, str]


class Room(NamedTuple):
    """What goes into one flat module, usually of a whole room."""

    texts: dict[str, dict[int, str]]  # module -> line -> statement
    imports: dict[str, set[str]]  # module -> what is imported from it, as it is written; "": the module itself
    bound: dict[str, str]  # name -> where it comes from


class ClashError(Exception):
    """Two modules of a room use one name for different things."""


def shaken(names: Iterable[Name], kinds: dict[str, str]) -> dict[str, str]:
    """File name -> text of the flat modules with `names` and all that they reach.

    `kinds`: module -> the kind that it has to choose. If modules of a room use one name for different things, each of
    them becomes a flat module of its own.
    """
    apart: set[str] = set()
    while True:
        try:
            return _shaken(list(names), kinds, apart)
        except ClashError as clash:
            if str(clash) in apart:
                raise
            apart.add(str(clash))


def _shaken(names: list[Name], kinds: dict[str, str], apart: set[str]) -> dict[str, str]:
    rooms: dict[str, Room] = {}
    waiting, done = [_defined(name, kinds) for name in names], set()
    while waiting:
        where, wanted = waiting.pop()
        module = read_module(where, kinds.get(where))
        flat = _flat(where, apart)
        room = rooms.setdefault(flat, Room({}, {}, {}))
        for statement in module.statements:
            if (where, statement.lineno) in done or not (wanted in _bound(statement) or isinstance(statement, ast.Try)):
                continue  # a `try` acts on the rest of its module
            done.add((where, statement.lineno))
            text, reached = _text(module, statement, kinds.get(where), apart)
            room.texts.setdefault(where, {})[statement.lineno] = text
            for name in _bound(statement):
                _bind(room, name, where, flat)
            for used in sorted(_uses(text)):
                if used in module.ours:
                    target = _defined(module.ours[used], kinds)
                    reached.append(target)
                    _bind(room, used, target[0], flat)
                    if (other := _flat(target[0], apart)) != flat:
                        room.imports.setdefault(f".{other}", set()).add(_as(target[1], used))
                elif used in module.others:
                    source, _, imported = module.others[used].partition(":")
                    _bind(room, used, module.others[used], flat)
                    room.imports.setdefault(source, set()).add(imported)
                elif used != wanted:
                    reached.append((where, used))
            waiting += [_defined(target, kinds) for target in reached]
    return {f"{flat}.py": _joined(flat, room, kinds) for flat, room in sorted(rooms.items()) if room.texts}


@cache
def read_module(name: str, kind: str | None = None) -> Module:
    """The parsed source of a module, for checkpoints of a method `kind` (None: of any)."""
    source = _of_one_method(name, kind) or Path(find_spec(name).origin).read_text(encoding="utf-8")
    tree = ast.parse(source)
    title = (ast.get_docstring(tree) or "").partition("\n")[0]
    module = Module(name, source.splitlines(keepends=True), title, [], {}, {})
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                bound = alias.asname or alias.name
                if _is_ours(node):
                    module.ours[bound] = node.module, alias.name
                else:
                    module.others[bound] = f"{node.module}:{_as(alias.name, bound)}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                module.others[alias.asname or alias.name.split(".")[0]] = f":{_as(alias.name, alias.asname)}"
        elif not isinstance(node, ast.Expr):
            module.statements.append(node)
    return module


def _of_one_method(module: str, kind: str | None) -> str | None:
    """What replaces, in a checkpoint, the modules that look a method up by its kind."""
    if kind is None or module not in ("clip_itm.methods.build", "clip_itm.methods.configuration"):
        return None
    stem, part = METHODS[kind], module.rpartition(".")[2]
    if part == "configuration":
        return f"from clip_itm.methods.{kind}.configuration import {stem}HeadConfig\n\nHeadConfig = {stem}HeadConfig\n"
    return (
        f"from clip_itm.methods.{kind}.head import {stem}Head\n\n\n"
        f"def build_head(config, *towers) -> {stem}Head:\n"
        f"    return {stem}Head.build(config, *towers)\n"
    )


def _defined(name: Name, kinds: dict[str, str]) -> Name:
    """Where a name is defined, which may be imported from elsewhere, or what stands in for it."""
    name = STAND_INS.get(name[0], name[0]), name[1]
    while (found := read_module(name[0], kinds.get(name[0])).ours.get(name[1])) is not None:
        name = STAND_INS.get(found[0], found[0]), found[1]
    return name


def _bind(room: Room, name: str, source: str, flat: str) -> None:
    if room.bound.setdefault(name, source) != source:
        raise ClashError(flat)


def _bound(node: ast.stmt) -> set[str]:
    """The names that a statement at the top of a module binds."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    parts = list(ast.walk(node))
    imported = {
        alias.asname or alias.name
        for part in parts
        if isinstance(part, ast.ImportFrom | ast.Import)
        for alias in part.names
    }
    return imported | {part.id for part in parts if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)}


def _uses(text: str) -> set[str]:
    return {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}


def _text(module: Module, statement: ast.stmt, kind: str | None, apart: set[str]) -> tuple[str, list[Name]]:
    """A statement, with the comment above it, as it is copied, and the names that the chosen case in it imports."""
    if kind is not None and (section := _section_of(module, statement, kind)) is not None:
        return section, []
    lines, reached = list(module.lines), []
    for node in _nodes(ast.Module([statement], []), kind):
        if isinstance(node, ast.ImportFrom) and _is_ours(node):
            reached += [(node.module, alias.name) for alias in node.names]
            names = ", ".join(_as(alias.name, alias.asname) for alias in node.names)
            there = _flat(node.module, apart)
            near = there == _flat(module.name, apart)
            _replace(lines, [node], "pass\n" if near else f"from .{there} import {names}\n")
        elif isinstance(node, ast.Import | ast.ImportFrom):
            attempt = f"try:  # demanded where it is used\n    {ast.unparse(node)}\nexcept ImportError:\n    raise\n"
            _replace(lines, [node], attempt)
        elif isinstance(node, ast.match_case):
            wanted = f"the code of this checkpoint is for {kind!r} alone; another kind needs the package clip-itm"
            _replace(lines, node.body, f'raise ValueError("{wanted}")\n')
        else:
            _replace(lines, node.body, f'raise ValueError("{FOR_THE_PACKAGE}")\n')
    first = min(node.lineno for node in (statement, *getattr(statement, "decorator_list", ()))) - 1
    while first and module.lines[first - 1].startswith("#"):
        first -= 1
    return "".join(lines[first : statement.end_lineno]), reached


def _section_of(module: Module, statement: ast.stmt, kind: str) -> str | None:
    """A union of sections, distinguished by their `kind`, as the one section of this kind, if it is one of them."""
    if not isinstance(statement, ast.Assign) or "discriminator" not in ast.unparse(statement):
        return None
    for name in _uses(ast.unparse(statement.value)):
        where, defined = _defined((module.name, name), {})
        for node in read_module(where).statements:
            if (
                isinstance(node, ast.ClassDef)
                and node.name == defined
                and f"kind: Literal[{kind!r}]" in ast.unparse(node)
            ):
                return f"{ast.unparse(statement.targets)} = {name}\n"
    return None  # a head with a similarity of its own


def _nodes(node: ast.AST, kind: str | None, optional: bool = False) -> Iterator[ast.AST]:
    """The nodes that change in a statement.

    Imports in the case that stays; imports of other packages within functions (`optional`), which transformers would
    demand; and cases of another kind and what is for the package alone, as a whole.
    """
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            if _is_ours(child) or (optional and _packages(child) - sys.stdlib_module_names):
                yield child
        elif (isinstance(child, ast.match_case) and _is_other(child, kind)) or _is_for_the_package(child):
            yield child
        else:
            within = optional or isinstance(child, ast.FunctionDef)
            yield from _nodes(child, kind, within and not isinstance(child, ast.Try))


def _is_ours(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "clip_itm"


def _packages(node: ast.Import | ast.ImportFrom) -> set[str]:
    names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
    return {name.split(".")[0] for name in names}


def _is_other(case: ast.match_case, kind: str | None) -> bool:
    kinds = {part.value for part in ast.walk(case.pattern) if isinstance(part, ast.Constant)}
    return kind is not None and bool(kinds) and kind not in kinds


def _is_for_the_package(node: ast.AST) -> bool:
    if not isinstance(node, ast.FunctionDef | ast.If) or not (body := _after_docstring(node)):
        return False
    return _is_ours(body[0]) or (isinstance(node, ast.FunctionDef) and node.name in OMITTED)


def _after_docstring(node: ast.FunctionDef | ast.If) -> list[ast.stmt]:
    described = isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None
    return node.body[described:]


def _replace(lines: list[str], statements: list[ast.stmt], text: str) -> None:
    """Replace statements with `text`, in their indentation; `lines` keeps its length."""
    first, last = statements[0].lineno - 1, statements[-1].end_lineno
    lines[first:last] = [textwrap.indent(text, " " * statements[0].col_offset)] + [""] * (last - first - 1)


def _as(name: str, bound: str | None) -> str:
    return name if bound in (None, name) else f"{name} as {bound}"


def _flat(module: str, apart: set[str]) -> str:
    """The flat module of a room, which may be one module; of the rooms in `apart`, that of each module."""
    parts = module.split(".")
    room = "_".join(parts[:2])
    return "_".join(parts) if room in apart else room


def _joined(flat: str, room: Room, kinds: dict[str, str]) -> str:
    """The text of a flat module: imports, then what is kept of each module, after those that it imports."""
    lines = [f"# {flat.replace('_itm_', '_itm/')} of clip-itm {version('clip-itm')}, Apache-2.0\n"]
    for source in sorted(room.imports, key=lambda name: (name.startswith("."), name)):
        names = sorted(room.imports[source])
        line = f"from {source} import {', '.join(names)}"
        if source == "":
            line = "\n".join(f"import {name}" for name in names)
        elif len(line) > LINE:
            line = f"from {source} import (\n{textwrap.fill(', '.join(names), LINE - 4)}\n)".replace("\n", "\n    ")
            line = line.removesuffix("    )") + ")"
        lines.append(f"{line}\n")
    graph = {}
    for where in sorted(room.texts):
        before = {_defined(name, kinds)[0] for name in read_module(where, kinds.get(where)).ours.values()}
        graph[where] = sorted(before & room.texts.keys() - {where})
    for where in TopologicalSorter(graph).static_order():
        module = read_module(where, kinds.get(where))
        lines.append(f"\n\n# {where.replace('.', '/')}.py\n" + f"# {module.title}\n" * bool(module.title))
        before = ""
        for _, text in sorted(room.texts[where].items()):
            lines.append("\n\n" * (bool(before) and max(before.count("\n"), text.count("\n")) > 2) + text)
            before = text
    return "".join(lines)
