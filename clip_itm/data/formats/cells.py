"""What is in a cell of a table: one text, or a list of them as JSON, Python and pandas write it.

A text is a list if it begins, white space aside, with

- `[` and a quote, maybe after more brackets or a call such as `array(`,
- `(`, a quoted text and a comma (a tuple),
- `{` and a quoted text before `,`, `:` or `}`,
- a call of one of these with a quoted text, such as `dict_values(['` or `frozenset({'`,

or if it is, as a whole, brackets around nothing or around numbers, None, nan, true and the like. JSON lists and
Python's lists and tuples of strings and numbers are read; whatever else looks like a list (NumPy's `['a' 'b']`, nested
lists, dictionaries, lists that were cut) is an error that names the row. So "[untitled] a dog on a beach" and
"[1] a dog" stay captions.
"""

import ast
import json
import re
import warnings
from typing import Any, NoReturn

from clip_itm.data.formats.annotation_files import check_text
from clip_itm.visible import counted

STRING = r"""[uU]?(?:'(?:[^'\\\n]++|\\.)*+'|"(?:[^"\\\n]++|\\.)*+")"""
WORD = r"(?:None|null|NaN|nan|True|true|False|false|-?(?:inf|Infinity|\d[\d_.]*+(?:[eE][+-]?\d++)?+))"
ITEM = rf"(?:{STRING}|{WORD})"
CALL = r"[A-Za-z][\w.]*+\(\s*+[\[({]\s*+['\"]"  # of a Python container: deque(['a dog'])
LOOKS_LIKE_A_LIST = re.compile(
    rf"""\[(?:[\[({{\s]|(?:[a-z]+\.)?[a-z]\w*\((?=['"\[]))*+[bBrRuU]{{0,2}}['"]
      | \(\s*+{STRING}\s*+, | \{{\s*+{STRING}\s*+[,:}}] | (?:[a-z]+\.)?array\(\[ | {CALL}
      | \[\s*+{WORD}?+(?:[\s,]++{ITEM})*+[\s,]*+\]\Z | \((?:\s*+{WORD}\s*+,(?:\s*+{ITEM}\s*+,?)*+)?+\s*+\)\Z
      | \{{\s*+\}}\Z""",
    re.VERBOSE | re.DOTALL,
)
ITEMS = rf"{ITEM}(?:\s*+,\s*+{ITEM})*+\s*+,?"
PYTHON_LIST = re.compile(
    rf"\[\s*+(?:{ITEMS})?+\s*+\]|\(\s*+(?:{ITEM}\s*+,\s*+(?:{ITEMS})?+)?+\s*+\)",
    re.DOTALL,
)
NUMPY_LIST = re.compile(rf"(?:array\()?\[\s*+{STRING}(?:\s++(?:{STRING}|\.\.\.))++\s*+\]", re.DOTALL)
BRACKETS = ("[", "(", "{", "array([", "np.array([", "numpy.array([")


def list_of(cell: Any, where: str) -> Any:
    """The list in a cell if there is one (the module's docstring has the rule), otherwise the cell unchanged.

    Raises ValueError, beginning with `where`, for text that looks like a list but cannot be read as one.

    Example:
        >>> list_of("['a dog', 'two dogs']", "captions.csv:2"), list_of("[1] a dog", "captions.csv:3")
        (['a dog', 'two dogs'], '[1] a dog')
    """
    if isinstance(cell, tuple):
        return list(cell)
    if not isinstance(cell, str):
        return cell
    text = cell.strip()
    if not (text.startswith(BRACKETS) or re.match(CALL, text)) or LOOKS_LIKE_A_LIST.match(text) is None:
        return cell
    try:
        values = json.loads(text)
        return values if isinstance(values, list) else _refuse(text, where)
    except (json.JSONDecodeError, RecursionError):
        pass
    if PYTHON_LIST.fullmatch(text) is None:  # literal_eval would join NumPy's neighbours, and accepts nesting
        _refuse(text, where)
    try:
        with warnings.catch_warnings(action="error"):  # of escapes that Python does not know
            return list(ast.literal_eval(text))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        _refuse(text, where)


def _refuse(text: str, where: str) -> NoReturn:
    what, advice = "looks like a list, but is none that can be read", "write it as JSON"
    if NUMPY_LIST.fullmatch(text):
        what = "is a NumPy array written as text, where nothing tells one string from the next"
        advice = "write lists (before to_csv: df[column] = df[column].map(list))"
    raise ValueError(
        f'{where}: {text[:80]!r} {what}; {advice}, such as ["a dog", "two dogs"]; a text that only begins like a list '
        'goes into a list of one: ["..."]'
    )


def captions_of(value: object, where: str) -> list[str]:
    """The captions in a cell: a text, or a list of texts; null is an empty caption.

    Raises ValueError for anything else (BrokenRow for invalid Unicode), beginning with `where`.
    """
    found = list_of(value, where)
    captions = found if isinstance(found, list) else [found]
    captions = ["" if caption is None else caption for caption in captions]
    if not all(isinstance(caption, str) for caption in captions):
        raise ValueError(f"{where}: expected a caption or a list of captions, got {_short(value)}")
    return [check_text(caption, where) for caption in captions]


def weights_of(value: object, count: int, where: str) -> list[float]:
    """The weights in a cell, one for each of `count` captions: a number, a list of numbers, or either in a string.

    Raises ValueError, beginning with `where`, for another number of weights and for weights outside [0, 1].
    """
    numbers = list_of(value, where)
    if isinstance(numbers, str):
        try:
            numbers = json.loads(numbers)
        except (ValueError, RecursionError):
            numbers = None
    numbers = numbers if isinstance(numbers, list) else [numbers]
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= 1:
            raise ValueError(f"{where}: expected a number from 0 to 1 for each caption, got {_short(value)}")
    if len(numbers) != count:
        given, wanted = counted(len(numbers), "weight"), counted(count, "caption")
        raise ValueError(f"{where}: {given} for {wanted}; expected one for each")
    return [float(number) for number in numbers]


def ids_of(value: object, count: int, where: str) -> list[str]:
    """The caption ids in a cell, one for each of `count` captions: an id, or a list of ids; ValueError otherwise."""
    found = list_of(value, where)
    ids = found if isinstance(found, list) else [found]
    if len(ids) != count or not all(_is_id(one) for one in ids):
        raise ValueError(f"{where}: expected an id for each of {counted(count, 'caption')}, got {_short(value)}")
    return [check_text(str(one), where) for one in ids]


def _is_id(value: object) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool) and str(value) != ""


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
