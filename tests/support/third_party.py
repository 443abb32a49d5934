"""What a forked process has imported: the libraries of others, never this package."""

import os
from importlib import import_module

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is loaded

for library in (
    "datasets",
    "jinja2",
    "open_clip",
    "peft",
    "pydantic.main",
    "pydantic.type_adapter",
    "rich.progress",
    "torch._dynamo",
    "torch.distributed",
    "torchvision.transforms.v2",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.processing_auto",
    "transformers.pipelines",
    "transformers.trainer",
    "yaml",
):
    import_module(library)
