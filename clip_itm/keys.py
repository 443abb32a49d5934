"""The types of a recipe's keys, taken from its sections: which keys take text, and what is below a key."""

import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from clip_itm.section import Section

Types = Sequence[Any]  # annotations; a key has one for every kind of its section that knows it


def members(annotation: Any) -> list[Any]:
    """The members of an annotation, without `Annotated` and with unions taken apart.

    Example:
        >>> members(int | None)
        [<class 'int'>, <class 'NoneType'>]
    """
    if typing.get_origin(annotation) is typing.Annotated:
        return members(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [member for argument in typing.get_args(annotation) for member in members(argument)]
    return [annotation]


def all_members(annotations: Types) -> list[Any]:
    """The members of all annotations."""
    return [member for annotation in annotations for member in members(annotation)]


def section_types(annotation: Any) -> list[type[Section]]:
    """The sections among the members of an annotation."""
    return [member for member in members(annotation) if isinstance(member, type) and issubclass(member, Section)]


def tags(section: type[Section]) -> tuple[str | None, ...]:
    """The discriminator values (`source`, `kind`) of one branch of a union."""
    for name in ("source", "kind"):
        if name in section.model_fields:
            return typing.get_args(section.model_fields[name].annotation)
    return (None,)


def below(annotations: Types, name: str) -> list[Any]:
    """The annotations of the key `name` inside a section or mapping of one of `annotations`; [] if there is none."""
    found = []
    for member in all_members(annotations):
        if isinstance(member, type) and issubclass(member, Section) and name in member.model_fields:
            found.append(member.model_fields[name].annotation)
        elif typing.get_origin(member) is dict:
            found.append(typing.get_args(member)[1])
    return found


def items(annotations: Types) -> list[Any]:
    """The annotations of the items of a list of one of `annotations`."""
    lists = [member for member in all_members(annotations) if typing.get_origin(member) in (list, tuple)]
    return [argument for member in lists for argument in typing.get_args(member) if argument is not Ellipsis]


def is_mapping(annotations: Types) -> bool:
    """Whether a key holds a mapping of the user's own keys, whose values have one type."""
    return any(
        typing.get_origin(member) is dict and typing.get_args(member)[1] is not Any
        for member in all_members(annotations)
    )


def may_be_none(annotations: Types) -> bool:
    """Whether a key takes None."""
    return type(None) in all_members(annotations)


def is_text(annotations: Types) -> bool:
    """Whether a key takes only text (perhaps one of several words) or None."""
    return _are(annotations, lambda member: member is str or _is_choice(member))


def is_number(annotations: Types) -> bool:
    """Whether a key takes only a number, true and false, or None."""
    return _are(annotations, lambda member: member in (int, float, bool))


def _are(annotations: Types, test) -> bool:
    found = [member for member in all_members(annotations) if member is not type(None)]
    return bool(found) and all(map(test, found))


def _is_choice(member: Any) -> bool:
    return typing.get_origin(member) is Literal and all(isinstance(word, str) for word in typing.get_args(member))


def all_keys(owner: type[Section], prefix: str = "") -> Iterator[tuple[str, list[Any]]]:
    """Every key of every kind with its annotations: ("training.batch_size", [...]); a key may come more than once."""
    for name, field in owner.model_fields.items():
        yield f"{prefix}{name}", [field.annotation]
        for section in section_types(field.annotation):
            yield from all_keys(section, f"{prefix}{name}.")
