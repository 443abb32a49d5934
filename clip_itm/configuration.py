"""`ItmConfig`: what a checkpoint needs to be rebuilt without a recipe and without the Hub."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.pipelines import PIPELINE_REGISTRY

from clip_itm.renamed import with_new_names
from clip_itm.task import TASK


class ItmConfig(PreTrainedConfig):
    """`backbone` and `head` are the recipe's sections, resolved (architecture included), as plain mappings."""

    model_type = "clip_itm"

    backbone: dict[str, Any] | None = None
    head: dict[str, Any] | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.head = self.head and with_new_names("head", self.head)
        if TASK in PIPELINE_REGISTRY.supported_tasks:  # else transformers would demand the pipeline of the checkpoint
            self.custom_pipelines = {}

    def to_json_file(self, json_file_path, use_diff: bool = True) -> None:
        """See `PreTrainedConfig`. Next to config.json it writes code that loads the model without this package."""
        if self.backbone is not None and self._auto_class is None:  # else transformers copies the code that it loaded
            from clip_itm.checkpoint_code import AUTO_MAP, PIPELINES, write_code

            write_code(self, Path(json_file_path).parent)
            self.auto_map, self.custom_pipelines = dict(AUTO_MAP), PIPELINES
        super().to_json_file(json_file_path, use_diff)
