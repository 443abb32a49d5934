"""`ItmConfig`: what a checkpoint needs to be rebuilt without a recipe and without the Hub."""

from typing import Any

from transformers import PreTrainedConfig


class ItmConfig(PreTrainedConfig):
    """`backbone` and `head` are the recipe's sections, resolved (architecture included), as plain mappings."""

    model_type = "clip_itm"

    backbone: dict[str, Any] | None = None
    head: dict[str, Any] | None = None
