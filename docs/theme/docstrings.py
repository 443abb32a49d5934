"""Examples in docstrings that no heading announces, as code: a line that begins with >>> would be a quotation."""

import re

import griffe

EXAMPLE = re.compile(r"(?:(?<=\n\n)|\A)(?=>>> )(.+?)(?=\n\n|\Z)", re.DOTALL)


class Examples(griffe.Extension):
    """Puts a fence around each example before anything reads the docstring."""

    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        if obj.docstring:
            obj.docstring.value = EXAMPLE.sub(r"```python\n\1\n```", obj.docstring.value)
