"""The code of a checkpoint: what transformers needs to load it in a process without this package.

With `trust_remote_code=True` transformers imports, from the folder of the checkpoint, the modules that `auto_map` and
`custom_pipelines` in config.json name. It follows lines `from .name import x`, which it finds by a regular expression,
within one flat folder, and demands every package that is imported outside of `try`. So the modules that a checkpoint
needs are copied flat: `clip_itm/backbones/base.py` becomes `clip_itm_backbones_base.py`, and its imports from this
package become relative ones. Backbones, heads and similarities of another kind are left out, and nothing is registered:
two checkpoints of one process may bring different code.
"""

import ast
import hashlib
import re
import sys
import textwrap
from collections.abc import Iterator
from functools import cache
from importlib.metadata import requires, version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers.dynamic_module_utils import get_imports

from clip_itm.files import write_text
from clip_itm.kinds import METHODS
from clip_itm.task import TASK

AUTO_MAP = {"AutoConfig": "clip_itm_configuration.ItmConfig", "AutoModel": "clip_itm_model.ItmModel"}
PROCESSOR_AUTO_MAP = {"AutoProcessor": "clip_itm_processing.ItmProcessor"}
PIPELINES = {
    TASK: {
        "impl": "clip_itm_retrieval_pipeline.ImageTextRetrievalPipeline",
        "pt": ["AutoModel"],
        "type": "multimodal",
    }
}
# a model that was loaded by its own code is saved by transformers, which copies what its module leads to
TOGETHER = """
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # transformers copies and downloads the files that such lines name; the pipeline goes with the model
    from .clip_itm_retrieval_pipeline import ImageTextRetrievalPipeline  # noqa: F401
"""
DISTRIBUTIONS = {"PIL": "pillow", "open_clip": "open_clip_torch", "sklearn": "scikit-learn", "yaml": "pyyaml"}


def write_code(config, folder: Path) -> None:
    """The modules that load a model of `config` (an `ItmConfig`), and requirements.txt, into a checkpoint."""
    head = config.head or {"kind": "clip"}
    kinds = config.backbone["kind"], head["kind"], head.get("similarity", {"kind": "cosine"})["kind"]
    for name, text in code_files(*kinds).items():
        write_text(folder / name, text)
    lora = config.backbone.get("lora") is not None
    write_text(folder / "requirements.txt", _requirements(_packages_of_code(*kinds), lora))


def write_processor_code(folder: Path, module: str = "clip_itm.processing") -> None:
    """The modules that load a processor, which is in `module`."""
    for name, text in _closure([module], {}).items():
        write_text(folder / name, text)


@cache
def code_files(backbone: str, head: str, similarity: str = "cosine") -> dict[str, str]:
    """File name -> text of the modules of a checkpoint with these kinds of backbone, head and similarity."""
    kinds = {
        "clip_itm.backbones.build": backbone,
        "clip_itm.methods.build": head,
        "clip_itm.methods.configuration": head,
        "clip_itm.similarity.build": similarity,
    }
    files = _closure(["clip_itm.configuration", "clip_itm.model", "clip_itm.retrieval.pipeline"], kinds)
    files["clip_itm_model.py"] += TOGETHER
    # transformers finds the model by the class of its configuration, and keeps one class for equal files of folders
    # with equal names: two runs' "best" with different heads would share it
    digest = hashlib.sha256("".join(files.values()).encode()).hexdigest()
    files["clip_itm_configuration.py"] = f"# of the code {digest[:16]}\n" + files["clip_itm_configuration.py"]
    return files


@cache
def _packages_of_code(backbone: str, head: str, similarity: str) -> frozenset[str]:
    """What transformers demands before it imports the modules of a checkpoint."""
    with TemporaryDirectory() as folder:
        for name, text in code_files(backbone, head, similarity).items():
            (Path(folder) / name).write_text(text, encoding="utf-8")
        return frozenset(package for file in Path(folder).iterdir() for package in get_imports(file))


def _closure(modules: list[str], kinds: dict[str, str]) -> dict[str, str]:
    """`modules` and all that they import, flat."""
    files, waiting = {}, list(modules)
    while waiting:
        module = waiting.pop()
        if _file(module) not in files:
            files[_file(module)], imported = flatten(module, kinds.get(module))
            waiting += imported
    return dict(sorted(files.items()))


def flatten(module: str, kind: str | None = None) -> tuple[str, list[str]]:
    """The source of a module for a flat folder, and the modules of this package that it imports.

    `kind`: of a `match config.kind` in it, the only case that stays; of methods, the only one.
    """
    source = _of_one_method(module, kind) or Path(find_spec(module).origin).read_text(encoding="utf-8")
    tree, lines = ast.parse(source), source.splitlines(keepends=True)
    imported: list[str] = []
    for statement in tree.body:
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
            _replace(lines, [statement], "")  # a registration
    for node in _nodes(tree, kind):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("clip_itm."):
            imported += _make_relative(lines, node)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            attempt = f"try:  # demanded where it is used\n    {ast.unparse(node)}\nexcept ImportError:\n    raise\n"
            _replace(lines, [node], attempt)
        elif isinstance(node, ast.match_case):
            wanted = f"the code of this checkpoint is for {kind!r} alone; another kind needs the package clip-itm"
            _replace(lines, node.body, f"raise ValueError({wanted!r})\n")
        else:
            why = "transformers did not load this class: use AutoModel, AutoProcessor"
            _replace(lines, node.body, f"raise ValueError({why!r})\n")
    header = f"# {module.replace('.', '/')}.py of clip-itm {version('clip-itm')}, Apache-2.0\n"
    return header + "".join(lines), imported


def _of_one_method(module: str, kind: str | None) -> str | None:
    """What stands in a checkpoint for the modules that look a method up by its kind."""
    if kind is None or module not in ("clip_itm.methods.build", "clip_itm.methods.configuration"):
        return None
    stem, part = METHODS[kind], module.rpartition(".")[2]
    if part == "configuration":
        return f"from clip_itm.methods.{kind}.configuration import {stem}HeadConfig as HeadConfig  # noqa: F401\n"
    return (
        f"from clip_itm.methods.{kind}.head import {stem}Head\n\n\n"
        f"def build_head(config, *towers) -> {stem}Head:\n"
        f"    return {stem}Head.build(config, *towers)\n"
    )


def _nodes(node: ast.AST, kind: str | None, optional: bool = False) -> Iterator[ast.AST]:
    """What changes in a module: imports from this package; imports within functions (`optional`), which transformers
    would demand; and, instead of what is in them, cases of another kind and branches that write code."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ImportFrom) and child.module.startswith("clip_itm."):
            yield child
        elif isinstance(child, ast.Import | ast.ImportFrom):
            if optional and _packages(child) - sys.stdlib_module_names:
                yield child
        elif (isinstance(child, ast.match_case) and _is_other(child, kind)) or _writes_code(child):
            yield child
        else:
            within = optional or isinstance(child, ast.FunctionDef)
            yield from _nodes(child, kind, within and not isinstance(child, ast.Try))


def _packages(node: ast.Import | ast.ImportFrom) -> set[str]:
    names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
    return {name.split(".")[0] for name in names}


def _is_other(case: ast.match_case, kind: str | None) -> bool:
    kinds = {part.value for part in ast.walk(case.pattern) if isinstance(part, ast.Constant)}
    return kind is not None and bool(kinds) and kind not in kinds


def _writes_code(node: ast.AST) -> bool:
    first = node.body[0] if isinstance(node, ast.If) else None
    return isinstance(first, ast.ImportFrom) and first.module == "clip_itm.checkpoint_code"


def _make_relative(lines: list[str], node: ast.ImportFrom) -> list[str]:
    """Rewrite an import from this package, and return the modules that it needs."""
    if Path(find_spec(node.module).origin).name != "__init__.py":
        line = node.lineno - 1
        lines[line] = lines[line].replace(f"from {node.module} import", f"from .{_flat(node.module)} import")
        return [node.module]
    modules = [f"{node.module}.{alias.name}" for alias in node.names]
    names = [
        f"{_flat(module)} as {alias.asname or alias.name}" for module, alias in zip(modules, node.names, strict=True)
    ]
    _replace(lines, [node], f"from . import {', '.join(names)}\n")
    return modules


def _replace(lines: list[str], statements: list[ast.stmt], text: str) -> None:
    """Put `text` in the place of statements, in their indentation; `lines` keeps its length."""
    first, last = statements[0].lineno - 1, statements[-1].end_lineno
    lines[first:last] = [textwrap.indent(text, " " * statements[0].col_offset)] + [""] * (last - first - 1)


def _flat(module: str) -> str:
    return module.replace(".", "_")


def _file(module: str) -> str:
    return f"{_flat(module)}.py"


def _requirements(imports: frozenset[str], lora: bool) -> str:
    """The packages behind `imports`, with the bounds of this package."""
    bounds = {}
    for line in requires("clip-itm") or []:
        requirement, _, marker = line.partition(";")
        name = re.match(r"[\w.-]+", requirement)[0]
        if not marker or (lora and "lora" in marker):
            bounds[name] = requirement.strip()
    names = {DISTRIBUTIONS.get(package, package) for package in imports - sys.stdlib_module_names}
    names |= {"torchvision", *(["peft"] if lora else [])}  # torchvision: the image processors of transformers
    return "".join(f"{bounds.get(name, name)}\n" for name in sorted(names))
