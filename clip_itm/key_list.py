"""All keys of a typed recipe, for people: what each takes, its default and its meaning.

`clip-itm train --help` prints them, and the pages of the reference are made from them. What several kinds of a section
share is listed once, and what the program fills in by itself is not listed.
"""

import itertools
import typing
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from pydantic.fields import FieldInfo

from clip_itm.keys import members, section_types, tags
from clip_itm.section import Section

CHOICES = ("source", "kind")  # keys that say which kind a section is
BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}  # the constraints of pydantic
WORDS = {str: "text", int: "integer", float: "number", Any: "anything"}


class Key(NamedTuple):
    """One key: `values` are alternatives, words to write or types; `default` is None if a value has to be given."""

    name: str
    values: tuple[str, ...]
    default: str | None
    meaning: str


class Group(NamedTuple):
    """Keys of one section that belong to the same kinds of it.

    `section`: such as "head.similarity", "" at the top; `of`: the kinds of the section above that have it, () for all;
    `kinds`: the kinds that have these keys, () for all; `choices`: where the kind itself is chosen, what each kind is.
    """

    section: str
    of: tuple[str, ...]
    kinds: tuple[str, ...]
    keys: list[Key]
    choices: dict[str, str]


def list_keys(owner: type[Section]) -> list[Group]:
    """The keys of a section and of all that are below it, in the order of the file."""
    return list(_groups("", (), [owner], None))


def _groups(section: str, of: tuple, options: list[type[Section]], entry: FieldInfo | None) -> Iterator[Group]:
    prefix = f"{section}." if section else ""
    kinds_of_each = {option: tuple(kind for kind in tags(option) if kind is not None) for option in options}
    all_kinds = tuple(itertools.chain(*kinds_of_each.values()))
    choice = next((name for name in CHOICES if all_kinds and name in options[0].model_fields), None)
    kinds_of: dict[Key, tuple[str, ...]] = {}
    below: dict[str, dict[tuple, tuple[tuple, FieldInfo]]] = {}  # name -> sections -> kinds that have these
    for option in options:
        kinds = kinds_of_each[option] if choice else ()
        for name, field in option.model_fields.items():
            sections = tuple(section_types(field.annotation))
            if sections:
                had = below.setdefault(name, {}).get(sections, ((), field))
                below[name][sections] = ((*had[0], *kinds), field)
            if name != choice and not is_filled_in(field) and (not sections or type(None) in members(field.annotation)):
                key = Key(f"{prefix}{name}", _values(field), _default(field), field.description or "")
                kinds_of[key] = (*kinds_of.get(key, ()), *kinds)
    if choice:
        default = None if entry is None or not isinstance(entry.default, Section) else getattr(entry.default, choice)
        meanings = {kind: _first_line(option) for option in options for kind in kinds_of_each[option]}
        yield Group(section, of, (), [Key(f"{prefix}{choice}", all_kinds, default, "")], meanings)
    for kinds in sorted(dict.fromkeys(kinds_of.values()), key=len, reverse=True):
        keys = [key for key, had in kinds_of.items() if had == kinds]
        yield Group(section, of, () if kinds == all_kinds else kinds, keys, {})
    for name, found in below.items():
        for sections, (kinds, field) in found.items():
            yield from _groups(f"{prefix}{name}", () if kinds == all_kinds else kinds, list(sections), field)


def as_text(groups: list[Group]) -> str:
    """A line per key, under a line for each group."""
    lines, above = [], None
    for group in groups:
        if (heading := title(group)) != above:
            lines.append(f"{heading}:")
        lines += _lines(group)
        above = heading
    return "\n".join(lines)


def title(group: Group) -> str:
    """What the keys of a group belong to: "data, source folder, hub"; "head.similarity (of dive), kind slots"."""
    words = [group.section or "recipe"]
    if group.of:
        words[0] += f" (of {', '.join(group.of)})"
    if group.kinds:
        words.append(f"{'source' if group.section == 'data' else 'kind'} {', '.join(group.kinds)}")
    return ", ".join(words)


def _lines(group: Group) -> Iterator[str]:
    for key in group.keys:
        default = "required" if key.default is None else f"default {key.default}"
        meaning = f": {key.meaning}" if key.meaning else ""
        yield f"  --{key.name} {'|'.join(key.values)} ({default}){meaning}"
    for kind, meaning in group.choices.items():
        yield f"      {kind}: {meaning}"


def is_filled_in(field: FieldInfo) -> bool:
    """Whether only the program writes this key, into what it saves (`section.filled_in`)."""
    extra = field.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("filled_in"))


def _first_line(option: type[Section]) -> str:
    return (option.__doc__ or "").strip().partition("\n")[0]


def _default(field: FieldInfo) -> str | None:
    return None if field.is_required() else _as_yaml(field.default)


def _as_yaml(value: Any) -> str:
    """As it is written in a recipe.

    >>> _as_yaml({"a": (0.9, None, True)})
    '{a: [0.9, null, true]}'
    """
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {_as_yaml(item)}' for name, item in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_as_yaml, value))}]"
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


def _values(field: FieldInfo) -> tuple[str, ...]:
    if section_types(field.annotation):
        return ("the keys below it", "null")
    return _alternatives(field.annotation, list(field.metadata))


def _alternatives(annotation: Any, constraints: list) -> tuple[str, ...]:
    """What an annotation takes.

    >>> _alternatives(Literal["mean", "max"] | int | None, [])
    ('mean', 'max', 'integer', 'null')
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        inner = [entry.metadata if isinstance(entry, FieldInfo) else [entry] for entry in arguments[1:]]
        return _alternatives(arguments[0], [*itertools.chain(*inner), *constraints])
    if len(members(annotation)) > 1:
        return tuple(dict.fromkeys(word for part in arguments for word in _alternatives(part, constraints)))
    if annotation is type(None):
        return ("null",)
    if annotation is bool:
        return ("true", "false")
    if origin is Literal:
        return tuple(map(str, arguments))
    if origin in (list, tuple):
        items = [_either(item) for item in arguments if item is not Ellipsis]
        return (f"list of {items[0]}" if len(items) == 1 else f"[{', '.join(items)}]",)
    if origin is dict:
        return (f"{{{_either(arguments[0])}: {_either(arguments[1])}, ...}}",)
    return (f"{WORDS[annotation]}{_range(constraints)}",)


def _either(annotation: Any) -> str:
    return " or ".join(_alternatives(annotation, []))


def _range(constraints: list) -> str:
    """What follows the name of a type: " > 0", " in [0, 1)"."""
    bounds = {
        name: getattr(one, name) for one in constraints for name in BOUNDS if getattr(one, name, None) is not None
    }
    bounds = {name: int(value) if value == int(value) else value for name, value in bounds.items()}
    lower, upper = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    if lower is not None and upper is not None:
        return f" in {'[' if 'ge' in bounds else '('}{lower:,}, {upper:,}{']' if 'le' in bounds else ')'}"
    return "".join(f" {BOUNDS[name]} {value}" for name, value in bounds.items())
