"""Examples in docstrings run and print what they say; those of models, runs and audits need weights and do not."""

import doctest
import importlib
from pathlib import Path

import pytest

import clip_itm

PACKAGE = Path(clip_itm.__file__).parent
NEED_WEIGHTS = ("model.py", "recipe.py", "runs/", "auditing/table.py", "auditing/judging.py")
WITH_EXAMPLES = sorted(
    path.relative_to(PACKAGE.parent).with_suffix("").as_posix().replace("/", ".")
    for path in PACKAGE.rglob("*.py")
    if not path.relative_to(PACKAGE).as_posix().startswith(NEED_WEIGHTS) and ">>> " in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_of_a_module_run(name):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0, "the examples are in a docstring that nothing reads"
    assert result.failed == 0
