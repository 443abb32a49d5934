"""YAML of a user: bounded, every key once, and text as it is written where a key takes text."""

from typing import Any

import yaml
from yaml.nodes import CollectionNode, MappingNode, Node, ScalarNode, SequenceNode

from clip_itm.keys import Types, below, is_text, items
from clip_itm.section import RecipeError

MOST_VALUES = 100_000  # with aliases written out
DEEPEST = 64
MOST_DIGITS = 100
TAG = "tag:yaml.org,2002:"


def read_yaml(text: str, origin: str, annotations: Types = (), key: str = "") -> Any:
    """What `text` says, as plain values; `annotations` are the types of `key`, to which the text belongs.

    A key that takes text gets the letters as they are written, even `007` and `no`; only null, ~ and nothing are None.
    Raises `RecipeError` (`origin` names the text in it) for invalid YAML, for a key that occurs twice, and for text
    that would grow beyond bounds: aliases of aliases, thousands of brackets, numbers of thousands of digits.
    """
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        values, depth = _extent(node, {}, set())
        if values > MOST_VALUES:
            raise RecipeError(f"{origin}: its aliases (*name) stand for more than {MOST_VALUES:,} values")
        if depth > DEEPEST:
            raise RecipeError(f"{origin}: nested deeper than {DEEPEST} levels")
        _as_written(node, annotations, key, origin)
        return loader.construct_document(node)
    except RecipeError:
        raise
    except RecursionError:
        raise RecipeError(f"{origin}: nested deeper than {DEEPEST} levels") from None
    except Exception as error:  # an explicit tag (!!int x) may raise anything
        raise RecipeError(f"{origin}: not valid YAML: {error}") from None
    finally:
        if loader is not None:
            loader.dispose()


def write_yaml(content: Any) -> str:
    """The text of plain values, which `read_yaml` gives back whatever their text holds."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """PyYAML writes the rarer line breaks of Unicode as they are, and reads them as spaces."""

    def represent_str(self, text: str) -> ScalarNode:
        breaks = any(letter in text for letter in "\x85\u2028\u2029")
        return self.represent_scalar(f"{TAG}str", text, style='"' if breaks else None)


_Dumper.add_representer(str, _Dumper.represent_str)


def _children(node: Node) -> list[Node]:
    if isinstance(node, MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, SequenceNode) else []


def _extent(node: Node, known: dict[int, tuple[int, int]], above: set[int]) -> tuple[int, int]:
    """How many values a node stands for, its aliases written out, and how deep they are nested."""
    if id(node) in above:
        raise ValueError(f"line {node.start_mark.line + 1}: an anchor that stands inside itself")
    if id(node) not in known:
        inner = [_extent(child, known, above | {id(node)}) for child in _children(node)]
        known[id(node)] = 1 + sum(size for size, _ in inner), 1 + max((depth for _, depth in inner), default=0)
    return known[id(node)]


def _as_written(node: Node, annotations: Types, key: str, origin: str) -> None:
    """Make text of what the YAML took for something else where a key takes text, and of every name of a key."""
    if isinstance(node, MappingNode):
        lines: dict[str, int] = {}
        for place, (name, value) in enumerate(node.value):
            line = name.start_mark.line + 1
            if name.tag == f"{TAG}merge":
                for merged in value.value if isinstance(value, SequenceNode) else [value]:
                    _as_written(merged, annotations, key, origin)
                continue
            if not isinstance(name, ScalarNode):
                raise RecipeError(f"{origin}, line {line}: the name of a key is a word")
            path = f"{key}.{name.value}" if key else name.value
            if name.value in lines:
                raise RecipeError(
                    f"{origin}, line {line}: {path} stands there twice (first in line {lines[name.value]})"
                )
            lines[name.value] = line
            node.value[place] = _text(name), _value(value, below(annotations, name.value), path, origin)
    elif isinstance(node, SequenceNode):
        node.value[:] = [
            _value(item, items(annotations), f"{key}.{index}", origin) for index, item in enumerate(node.value)
        ]


def _value(node: Node, annotations: Types, key: str, origin: str) -> Node:
    if isinstance(node, CollectionNode):
        _as_written(node, annotations, key, origin)
        return node
    if node.style is None and node.tag != f"{TAG}null" and is_text(annotations):
        return _text(node)
    if node.tag == f"{TAG}int" and len(node.value) > MOST_DIGITS:
        raise RecipeError(
            f"{origin}, line {node.start_mark.line + 1}: {key}: a number of {len(node.value):,} digits is too large"
        )
    return node


def _text(node: ScalarNode) -> ScalarNode:
    """A copy as text: the node itself may be used elsewhere, too, as an alias."""
    return ScalarNode(f"{TAG}str", node.value, node.start_mark, node.end_mark, style=node.style)
