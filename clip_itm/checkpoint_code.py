"""The code of a checkpoint: what transformers needs to load it in a process without this package.

With `trust_remote_code=True` transformers imports, from the folder of the checkpoint, the modules that `auto_map` and
`custom_pipelines` in config.json name. It follows lines `from .name import x`, which it finds by a regular expression,
within one flat folder, and demands every package that is imported outside of `try`. So what a checkpoint needs of this
package is written flat (`tree_shaking.py`): model, processor, and a search in memory; no backbone, method or similarity
of another kind, no loss, no stored index. Nothing is registered: two checkpoints in one process may have different
code.
"""

import hashlib
import re
import sys
from functools import cache
from importlib.metadata import requires
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers.dynamic_module_utils import get_imports

from clip_itm.files import write_text
from clip_itm.task import TASK
from clip_itm.tree_shaking import shaken

AUTO_MAP = {"AutoConfig": "clip_itm_configuration.ItmConfig", "AutoModel": "clip_itm_model.ItmModel"}
PROCESSOR_AUTO_MAP = {"AutoProcessor": "clip_itm_processing.ItmProcessor"}
PIPELINES = {
    TASK: {
        "impl": "clip_itm_retrieval.RetrievalPipeline",
        "pt": ["AutoModel"],
        "type": "multimodal",
    }
}
PROCESSOR = ("clip_itm.processing", "ItmProcessor")
MODEL = [
    ("clip_itm.configuration", "ItmConfig"),
    ("clip_itm.model", "ItmModel"),
    PROCESSOR,
    ("clip_itm.retrieval.memory_pipeline", "RetrievalPipeline"),
]
# a model that was loaded by its own code is saved by transformers, which copies what its module imports
TOGETHER = """
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # transformers copies and downloads the files that such lines name; the pipeline goes with the model
    from .clip_itm_retrieval import RetrievalPipeline  # noqa: F401
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


def write_processor_code(folder: Path, name: tuple[str, str] = PROCESSOR) -> None:
    """The modules that load a processor of the class `name`, unless the code of a model already contains them."""
    if (folder / "clip_itm_model.py").exists():  # whose code has more of the same modules
        return
    for file, text in shaken([name], {}).items():
        write_text(folder / file, text)


@cache
def code_files(backbone: str, head: str, similarity: str = "cosine") -> dict[str, str]:
    """File name -> text of the modules of a checkpoint with these kinds of backbone, head and similarity."""
    rooms = {"backbones": backbone, "methods": head, "similarity": similarity}
    kinds = {f"clip_itm.{room}.{name}": kind for room, kind in rooms.items() for name in ("build", "configuration")}
    files = shaken(MODEL, kinds)
    files["clip_itm_model.py"] += TOGETHER
    # transformers finds the model by the class of its configuration, and keeps one class for equal files in folders
    # with equal names: the "best" of two runs with different heads would share it
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
