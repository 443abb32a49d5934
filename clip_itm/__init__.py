"""Fine-tune CLIP for image-text matching when some of the captions are wrong."""

import importlib

__version__ = "0.1.0"  # the one place: pyproject.toml reads it from here

EXPORTS = {
    "ImageTextRetrievalPipeline": "clip_itm.retrieval.pipeline",
    "ItmConfig": "clip_itm.configuration",
    "ItmModel": "clip_itm.model",
    "ItmProcessor": "clip_itm.processing",
    "Recipe": "clip_itm.recipe",
    "load_recipe": "clip_itm.recipe",
    "train": "clip_itm.runs.train",
}


def __getattr__(name: str):
    """The names of `EXPORTS`, imported when they are asked for: `import clip_itm` must not wait for torch."""
    if name not in EXPORTS:
        raise AttributeError(f"module 'clip_itm' has no attribute {name!r}")
    return getattr(importlib.import_module(EXPORTS[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *EXPORTS]
