"""`--section.key VALUE` on the command line, merged into the mapping of a recipe."""

import copy
from typing import Any

from clip_itm.keys import Types, below, is_mapping, is_number, is_text, may_be_none, section_types, tags
from clip_itm.section import RecipeError, Section
from clip_itm.yaml_text import read_yaml


def merge_overrides(owner: type[Section], content: dict[str, Any], words: list[str]) -> dict[str, Any]:
    """A copy of `content` with `--a.b value` / `--a.b=value` pairs merged into it.

    The type of a key decides how its word is read: text is the word as it is (only null means None, where None is
    allowed); numbers are left to validation; lists and mappings are YAML. If a pair chooses another `source` or `kind`,
    keys of the file that belong only to the former one are dropped. Raises RecipeError for a word that is not a key and
    for a key without a value.
    """
    before, content = content, copy.deepcopy(content)
    rest, given = iter(words), set()
    for word in rest:
        key, equals, value = word.partition("=")
        if not key.startswith("--") or len(key) == 2:
            raise RecipeError(f"{word!r}: overrides are written --section.key value, such as --noise.ratio 0.4")
        if not equals:
            following = next(rest, None)
            if following is None or (following.startswith("--") and len(following) > 2):
                raise RecipeError(f"{key}: the value is missing (write {key} VALUE, or {key}=VALUE)")
            value = following
        (*parents, leaf), annotations = _place(owner, key[2:])
        target = content
        for parent in parents:
            child = target.get(parent)
            target[parent] = target = child if isinstance(child, dict) else {}
        target[leaf] = read_word(value, annotations, key)
        given.add((*parents, leaf))
    _leave_behind(owner, before, content, given)
    return content


def _place(owner: type[Section], key: str) -> tuple[list[str], Types]:
    """The path of a dotted key, and the types it may have. Names in a mapping of numbers or text may have dots."""
    path: list[str] = []
    annotations: Types = [owner]
    names = key.split(".")
    while names:
        if is_mapping(annotations):
            return [*path, ".".join(names)], below(annotations, ".".join(names))
        path.append(names.pop(0))
        annotations = below(annotations, path[-1])
    return path, annotations


def read_word(word: str, annotations: Types, key: str) -> Any:
    """The value of a word of the command line for a key of these types."""
    if word in ("", "null") and may_be_none(annotations):
        return None
    if is_text(annotations) or is_number(annotations):
        return word
    return read_yaml(word, key, annotations)


def _leave_behind(owner: type[Section], before: dict, content: dict, given: set[tuple], path: tuple = ()) -> None:
    """Drop keys of the file from sections for which an override has chosen another kind that has no such key.

    A section within such a section is dropped as a whole if the other kind has no such section.
    """
    for name, field in owner.model_fields.items():
        branches = {tag: section for section in section_types(field.annotation) for tag in tags(section)}
        default = tags(type(field.default))[0] if isinstance(field.default, Section) else None
        if not branches or not isinstance(content.get(name), dict):
            continue
        earlier = before.get(name)
        earlier = earlier if isinstance(earlier, dict) else {}
        now = branches.get(_chosen(content[name]) or default)
        if now is None:
            if path and not any(keys[: len(path) + 1] == (*path, name) for keys in given):
                del content[name]
            continue
        was = branches.get(_chosen(earlier) or default, now)
        for key in was.model_fields.keys() - now.model_fields.keys():
            if (*path, name, key) not in given:
                content[name].pop(key, None)
        _leave_behind(now, earlier, content[name], given, (*path, name))


def _chosen(section: Any) -> str | None:
    """The `source` or `kind` that a section names."""
    return section.get("source", section.get("kind")) if isinstance(section, dict) else None
