"""Fine-tune CLIP for image-text matching when some of the captions are wrong."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clip_itm.auditing.judging import audit
    from clip_itm.auditing.table import Audit
    from clip_itm.configuration import ItmConfig
    from clip_itm.data.rows import Split
    from clip_itm.model import ItmModel
    from clip_itm.processing import ItmProcessor
    from clip_itm.recipe import Recipe, load_recipe
    from clip_itm.retrieval.pipeline import ImageTextRetrievalPipeline
    from clip_itm.runs.evaluate import Evaluation, evaluate
    from clip_itm.runs.models import load_model
    from clip_itm.runs.train import train
    from clip_itm.runs.trainer import ItmTrainer

__version__ = "0.1.0"  # the one place: pyproject.toml reads it from here

__all__ = [
    "Audit",
    "Evaluation",
    "ImageTextRetrievalPipeline",
    "ItmConfig",
    "ItmModel",
    "ItmProcessor",
    "ItmTrainer",
    "Recipe",
    "Split",
    "audit",
    "evaluate",
    "load_model",
    "load_recipe",
    "train",
]

_MODULES = {
    "auditing.judging": ("audit",),
    "auditing.table": ("Audit",),
    "configuration": ("ItmConfig",),
    "data.rows": ("Split",),
    "model": ("ItmModel",),
    "processing": ("ItmProcessor",),
    "recipe": ("Recipe", "load_recipe"),
    "retrieval.pipeline": ("ImageTextRetrievalPipeline",),
    "runs.evaluate": ("Evaluation", "evaluate"),
    "runs.models": ("load_model",),
    "runs.train": ("train",),
    "runs.trainer": ("ItmTrainer",),
}


def __getattr__(name: str):
    """The public names, imported when they are asked for: `import clip_itm` must not wait for torch."""
    module = next((module for module, names in _MODULES.items() if name in names), None)
    if module is None:
        raise AttributeError(f"module 'clip_itm' has no attribute {name!r}")
    return getattr(importlib.import_module(f"clip_itm.{module}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
