"""A native model of transformers: the backbone's own class, `VisionTextDualEncoderModel`, or `CLIPModel` for a ViT."""

import copy
from pathlib import Path

import transformers
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from transformers import (
    AutoConfig,
    AutoModel,
    AutoProcessor,
    CLIPModel,
    PreTrainedModel,
)
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from clip_itm.backbones.huggingface import FULL_LENGTH
from clip_itm.hub.clip_weights import clip_config, to_huggingface
from clip_itm.hub.image_processor_code import with_code
from clip_itm.image_processing import OpenClipImageProcessor
from clip_itm.model import ItmModel
from clip_itm.processing import ItmProcessor


def write(model: ItmModel, processor: ItmProcessor, folder: Path) -> None:
    """See `clip_itm.hub.export`. Raises ValueError for towers that transformers has no class for."""
    native, state = _native(model)
    temperature = {"logit_scale": model.head.scale().detach().log(), "logit_bias": model.head.bias().detach()}
    for name, value in temperature.items():
        if (parameter := getattr(native, name, None)) is not None:
            state[name] = value.expand_as(parameter)
    native.load_state_dict(state)
    native.save_pretrained(folder)
    tokenizer = copy.deepcopy(processor.tokenizer)
    tokenizer.model_max_length = processor.max_length
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "right"  # as `ItmProcessor` pads; Gemma's: left
    if native.config.model_type in FULL_LENGTH:
        # as SigLIP's own tokenizer: a mask would change what the tower computes (saved only if it was an argument)
        tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = ["input_ids"]
    name = PROCESSOR_MAPPING_NAMES.get(native.config.model_type, "VisionTextDualEncoderProcessor")
    images = processor.image_processor
    if isinstance(images, OpenClipImageProcessor):
        images = with_code(images, folder)
    getattr(transformers, name)(images, tokenizer).save_pretrained(folder)


def _native(model: ItmModel) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    """The class for the towers, with random weights, and the towers' weights; a backbone has no temperature."""
    section, towers = model.backbone.config, model.backbone
    if "transformers" not in section.exports_to:
        raise ValueError(f"transformers has no class for the towers of {section.kind}; --to onnx can hold them")
    if section.library == "open_clip":
        native = CLIPModel(clip_config(section.model_config_dict["model_cfg"]))
        return native, to_huggingface(towers.model.state_dict())
    content = dict(section.model_config_dict)
    native = AutoModel.from_config(AutoConfig.for_model(content.pop("model_type"), **content))
    return native, towers.model.state_dict()


def pixels(folder: Path, samples: list[Image.Image], trust_remote_code: bool = True) -> Tensor:
    """See `clip_itm.hub.export`."""
    # not the processor itself: SigLIP 2's has sizes of its own, whatever the image processor says
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=trust_remote_code).image_processor
    return processor(samples, return_tensors="pt")["pixel_values"]


def embed(folder: Path, photos: dict[str, Tensor], captions: list[str]) -> tuple[Tensor, Tensor]:
    """See `clip_itm.hub.export`."""
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    padding = _padding(model.config.model_type)
    tokens = processor.tokenizer(captions, padding=padding, truncation=True, return_tensors="pt")
    images = model.get_image_features(**photos).pooler_output
    texts = model.get_text_features(**tokens).pooler_output
    return normalize(images, dim=-1), normalize(texts, dim=-1)


def _padding(model_type: str) -> bool | str:
    """How captions are padded: SigLIP reads all of them at one length, and without a mask."""
    return "max_length" if model_type in FULL_LENGTH else True


def usage(model: ItmModel, processor: ItmProcessor) -> str:
    """See `clip_itm.hub.export`."""
    model_type = (model.backbone.config.model_config_dict or {}).get("model_type", "")
    notes = ""
    trust = ", trust_remote_code=True" if isinstance(processor.image_processor, OpenClipImageProcessor) else ""
    if processor.text_cleaning != "none":
        notes += (
            "\nThe model was trained on captions with repaired Unicode (curly quotes, say) and HTML entities, by "
            "`ftfy.fix_text` and `html.unescape`; this processor does not do that.\n"
        )
    if model_type in FULL_LENGTH:
        notes += "\nThe model was trained without a bias of the logits; it is 0 here.\n"
    return f"""
```python
from torch.nn.functional import normalize
from transformers import AutoModel, AutoProcessor

model, processor = AutoModel.from_pretrained("PATH").eval(), AutoProcessor.from_pretrained("PATH"{trust})
captions = ["a dog in the snow"]
captions = processor.tokenizer(captions, padding={_padding(model_type)!r}, truncation=True, return_tensors="pt")
photos = processor.image_processor([photo], return_tensors="pt")
images = normalize(model.get_image_features(**photos).pooler_output, dim=-1)
texts = normalize(model.get_text_features(**captions).pooler_output, dim=-1)
print(images @ texts.T)
```
{notes}"""
