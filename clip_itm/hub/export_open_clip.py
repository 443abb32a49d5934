"""The native folder of open_clip: `open_clip_config.json`, `open_clip_model.safetensors`, and its own tokenizer."""

import copy
from pathlib import Path
from typing import Any

import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from clip_itm.files import write_json
from clip_itm.hub.clip_weights import model_cfg_of, to_open_clip
from clip_itm.model import ItmModel
from clip_itm.processing import ItmProcessor

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}


def write(model: ItmModel, processor: ItmProcessor, folder: Path) -> None:
    """See `clip_itm.hub.export`. Raises ValueError for towers that open_clip does not have."""
    section, towers = model.backbone.config, model.backbone
    if "open_clip" not in section.exports_to:
        raise ValueError(
            f"open_clip cannot hold the towers of {section.kind}: it has no way to name them in its configuration. "
            + " and ".join(f"--to {target}" for target in section.exports_to)
            + " can"
        )
    if section.library == "open_clip":
        model_cfg, state = _own_cfg(section.model_config_dict, processor), towers.model.state_dict()
    else:
        model_cfg = model_cfg_of(towers.model.config, processor.tokenizer)
        state = to_open_clip(towers.model.state_dict())
    shape = [1] if model_cfg.get("nonscalar_logit_scale") else []
    state["logit_scale"] = model.head.scale().detach().log().reshape(shape)
    if "init_logit_bias" in model_cfg:  # 0 if the model was trained without; sigmoid users expect one
        bias = model.head.bias().detach()
        state["logit_bias"], model_cfg["init_logit_bias"] = bias.reshape(shape), bias.item()
    write_json(folder / CONFIG, {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg(processor.image_processor)})
    save_file({name: value.contiguous() for name, value in state.items()}, folder / WEIGHTS, {"format": "pt"})
    if "hf_tokenizer_name" in model_cfg["text_cfg"]:
        processor.tokenizer.save_pretrained(folder)


def _own_cfg(source: dict[str, Any], processor: ItmProcessor) -> dict[str, Any]:
    """The configuration of an open_clip backbone: only the architecture, without pretrained weights."""
    model_cfg = copy.deepcopy(source["model_cfg"])
    if "timm_model_name" in model_cfg["vision_cfg"]:
        model_cfg["vision_cfg"]["timm_model_pretrained"] = False
    if "hf_model_name" in model_cfg["text_cfg"]:
        model_cfg["text_cfg"] |= {"hf_model_pretrained": False, "context_length": processor.max_length}
    return model_cfg


def preprocess_cfg(image_processor) -> dict[str, Any]:
    """What an image processor does, in open_clip's terms. Raises ValueError if open_clip cannot do it."""
    crop, resample = bool(image_processor.do_center_crop), int(image_processor.resample)
    size = image_processor.crop_size if crop else image_processor.size
    height, width = size.height, size.width
    known = height is not None and resample in INTERPOLATIONS
    mode = getattr(image_processor, "resize_mode", None)
    if crop and mode is None:
        known = known and height == width == image_processor.size.shortest_edge
    if not known:
        raise ValueError(
            f"open_clip has no such preprocessing of photos: {image_processor.size}, resample {resample}, "
            f"{f'centre crop {size}' if crop else 'no crop'}; --to transformers and --to onnx can hold it"
        )
    return {
        "size": height if height == width else [height, width],
        "mode": "RGB",
        "mean": list(image_processor.image_mean),
        "std": list(image_processor.image_std),
        "interpolation": INTERPOLATIONS[resample],
        "resize_mode": mode or ("shortest" if crop else "squash"),
        "fill_color": getattr(image_processor, "fill_color", None) or 0,
    }


def pixels(folder: Path, samples: list[Image.Image]) -> Tensor:
    """See `clip_itm.hub.export`."""
    *_, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    return torch.stack([preprocess(sample) for sample in samples])


def embed(folder: Path, photos: dict[str, Tensor], captions: list[str]) -> tuple[Tensor, Tensor]:
    """See `clip_itm.hub.export`."""
    try:
        model = open_clip.create_model(f"local-dir:{folder}").eval()
    except OSError as error:
        raise ValueError(
            "open_clip cannot rebuild this model, because it takes the configuration of the text tower from elsewhere: "
            f"{error}"
        ) from error
    ids = open_clip.get_tokenizer(f"local-dir:{folder}")(captions)
    return model.encode_image(photos["pixel_values"], normalize=True), model.encode_text(ids, normalize=True)


def usage(model: ItmModel, processor: ItmProcessor) -> str:
    """See `clip_itm.hub.export`."""
    notes = ""
    if model.backbone.config.library == "open_clip":
        model_cfg = model.backbone.config.model_config_dict["model_cfg"]
        if "init_logit_bias" in model_cfg:
            notes += "\nThe model was trained without a bias of the logits; it is 0 here.\n"
        if name := model_cfg["text_cfg"].get("hf_model_name"):
            notes += f"\nopen_clip takes the configuration of the text tower from `{name}` when it loads this folder.\n"
    return f"""
```python
import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:PATH")
tokenizer = open_clip.get_tokenizer("local-dir:PATH")
model.eval()
images = model.encode_image(preprocess(photo)[None], normalize=True)
texts = model.encode_text(tokenizer(["a dog in the snow"]), normalize=True)
print(images @ texts.T)
```
{notes}"""
