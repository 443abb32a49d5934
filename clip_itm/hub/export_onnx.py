"""Both towers as ONNX, with their unit norm: `image.onnx`, `text.onnx`, tokenizer, preprocessing, `onnx.json`.

An image costs one run of `image.onnx`, a caption one of `text.onnx`; similarity is a product of matrices.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoTokenizer

from clip_itm.backbones.base import Backbone
from clip_itm.backbones.pooling import masked_mean
from clip_itm.backbones.words import GruTower
from clip_itm.files import write_json
from clip_itm.hub.image_processor_code import with_code
from clip_itm.image_processing import OpenClipImageProcessor
from clip_itm.model import ItmModel
from clip_itm.processing import ItmProcessor, clean_text
from clip_itm.reading import read_json

DESCRIPTION = "onnx.json"
EXAMPLES = ["two words", "a few words more than that"]


class ImageTower(nn.Module):
    """Pixels [B, 3, H, W] to embeddings [B, D] of unit length."""

    def __init__(self, model: ItmModel):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.model.encode_images(pixel_values)


class TextTower(nn.Module):
    """Token ids and mask [B, T] to embeddings [B, D] of unit length."""

    def __init__(self, model: ItmModel):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model.encode_texts(input_ids, attention_mask)


class PaddedGru(nn.Module):
    """A `GruTower` without packed sequences, which ONNX does not have.

    A state never sees what comes later, so padding after the words needs no packing in the forward direction; for the
    backward direction the words of every caption are reversed within their length.
    """

    def __init__(self, tower: GruTower):
        super().__init__()
        self.tower = tower
        self.directions = nn.ModuleList()
        for layer in range(tower.gru.num_layers):
            for suffix in ("", "_reverse"):
                weights = {
                    f"{name}_l0": getattr(tower.gru, f"{name}_l{layer}{suffix}")
                    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
                }
                gru = nn.GRU(weights["weight_ih_l0"].shape[1], tower.gru.hidden_size, batch_first=True)
                gru.load_state_dict(weights)
                self.directions.append(gru)

    def forward(self, input_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """See `GruTower`; the words of a caption come first, its padding last."""
        lengths = mask.sum(dim=1, keepdim=True)
        place = torch.arange(mask.shape[1], device=mask.device)[None]
        turned = torch.where(place < lengths, lengths - 1 - place, place)[..., None]
        tokens = self.tower.embedding(input_ids) * mask[..., None]
        for forward, backward in zip(self.directions[::2], self.directions[1::2], strict=True):
            ahead = forward(tokens)[0]
            behind = backward(tokens.gather(1, turned.expand_as(tokens)))[0]
            tokens = torch.cat([ahead, behind.gather(1, turned.expand_as(behind))], dim=2)
        return self.tower.projection(masked_mean(tokens, mask)), tokens


def write(model: ItmModel, processor: ItmProcessor, folder: Path) -> None:
    """See `clip_itm.hub.export`. Raises ValueError if ONNX is not installed, and for towers it cannot hold."""
    if model.backbone.pads_images:
        raise ValueError(
            "image.onnx takes photos of one size, and these towers read patches with a mask (variable resolution, "
            "NaFlex): --to transformers can hold them"
        )
    _require_packages()
    batch = processor(text=EXAMPLES)
    pixels = torch.zeros(2, 3, *_input_size(processor))
    words = {0: "batch"} if processor.pad_to_max_length else {0: "batch", 1: "length"}
    _trace(ImageTower(model), {"pixel_values": (pixels, {0: "batch"})}, "image_embeds", folder / "image.onnx")
    texts = {name: (batch[name], words) for name in ("input_ids", "attention_mask")}
    with _traceable(model.backbone):
        _trace(TextTower(model), texts, "text_embeds", folder / "text.onnx")
    images = processor.image_processor
    if isinstance(images, OpenClipImageProcessor):
        images = with_code(images, folder)
    images.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    write_json(folder / DESCRIPTION, onnx_json(model, processor))


@contextmanager
def _traceable(backbone: Backbone) -> Iterator[None]:
    """Within, a `PaddedGru` instead of a GRU; what is written is later compared with the tower itself."""
    tower = getattr(backbone, "text_tower", None)
    if not isinstance(tower, GruTower):
        yield
        return
    backbone.text_tower = PaddedGru(tower)
    try:
        yield
    finally:
        backbone.text_tower = tower


def _require_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(f"--to onnx needs {error.name}: pip install 'clip-itm[onnx]'") from None


def _trace(tower: nn.Module, inputs: dict[str, tuple[Tensor, dict]], output: str, file: Path) -> None:
    """`inputs`: an example and the names of its free dimensions, by the name of the input."""
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                tower.eval(),
                tuple(example for example, _ in inputs.values()),
                dynamo=True,
                dynamic_shapes=tuple(dimensions for _, dimensions in inputs.values()),
                input_names=list(inputs),
                output_names=[output],
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            reason = error.__cause__ or error
            raise ValueError(f"torch cannot trace {file.stem}.onnx from these towers: {reason}") from error
    program.save(file)


def _input_size(processor: ItmProcessor) -> tuple[int, int]:
    size = getattr(processor.image_processor, "crop_size", None) or processor.image_processor.size
    return size["height"], size["width"]


def onnx_json(model: ItmModel, processor: ItmProcessor) -> dict:
    """What a program without this package and without transformers needs to know."""
    images = processor.image_processor
    mode = "shortest" if images.size.shortest_edge else "squash"
    return {
        "image": {
            "file": "image.onnx",
            "input": {"pixel_values": ["batch", 3, *_input_size(processor)]},
            "output": {"image_embeds": ["batch", model.backbone.embed_dim]},
            "resize": {name: value for name, value in dict(images.size).items() if value is not None},
            "resample": {2: "bilinear", 3: "bicubic"}.get(int(images.resample), int(images.resample)),
            "resize_mode": getattr(images, "resize_mode", None) or mode,
            "center_crop": bool(images.do_center_crop),
            "crop_offset": "half to even" if isinstance(images, OpenClipImageProcessor) else "down",
            "fill_color": getattr(images, "fill_color", None) or 0,
            "rescale": images.rescale_factor,
            "mean": list(images.image_mean),
            "std": list(images.image_std),
        },
        "text": {
            "file": "text.onnx",
            "input": {"input_ids": ["batch", "length"], "attention_mask": ["batch", "length"]},
            "output": {"text_embeds": ["batch", model.backbone.embed_dim]},
            "tokenizer": "tokenizer.json",
            "cleaning": processor.text_cleaning,
            "max_length": processor.max_length,
            "pad_token_id": processor.pad_token_id,
            "pad_to_max_length": processor.pad_to_max_length,
        },
        "similarity": "image_embeds @ text_embeds.T",
        "logit_scale": model.head.scale().log().item(),
    }


def pixels(folder: Path, samples: list[Image.Image], trust_remote_code: bool = True) -> Tensor:
    """See `clip_itm.hub.export`."""
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=trust_remote_code)
    return processor(samples, return_tensors="pt")["pixel_values"]


def embed(folder: Path, photos: dict[str, Tensor], captions: list[str]) -> tuple[Tensor, Tensor]:
    """See `clip_itm.hub.export`. One image and one caption per run: sizes other than the examples' are tried, too."""
    import onnxruntime

    described = read_json(folder / DESCRIPTION, "the description of an export")
    text = described["text"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    image_tower, text_tower = (
        onnxruntime.InferenceSession(folder / described[name]["file"], providers=["CPUExecutionProvider"])
        for name in ("image", "text")
    )
    images = [image_tower.run(None, {"pixel_values": sample[None].numpy()})[0] for sample in photos["pixel_values"]]
    texts = []
    padding = "max_length" if text["pad_to_max_length"] else False
    for caption in captions:
        words = clean_text(caption, text["cleaning"])
        tokens = tokenizer(
            [words], padding=padding, truncation=True, max_length=text["max_length"], return_tensors="np"
        )
        texts.append(text_tower.run(None, {name: tokens[name] for name in text["input"]})[0])
    return torch.from_numpy(np.concatenate(images)), torch.from_numpy(np.concatenate(texts))


def usage(model: ItmModel, processor: ItmProcessor) -> str:
    """See `clip_itm.hub.export`."""
    trust = ", trust_remote_code=True" if isinstance(processor.image_processor, OpenClipImageProcessor) else ""
    padding = "padding='max_length'" if processor.pad_to_max_length else "padding=True"
    notes = ""
    if processor.text_cleaning != "none":
        cleaning = f"`{processor.text_cleaning}` (see `clean_text` in `clip_itm/processing.py`)"
        notes = f"\nCaptions are cleaned before the tokenizer reads them: {cleaning}.\n"
    return f"""
```python
import onnxruntime
from transformers import AutoImageProcessor, AutoTokenizer

image_tower = onnxruntime.InferenceSession("PATH/image.onnx")
text_tower = onnxruntime.InferenceSession("PATH/text.onnx")
photos = AutoImageProcessor.from_pretrained("PATH"{trust})([photo], return_tensors="np")
captions = AutoTokenizer.from_pretrained("PATH")(
    ["a dog in the snow"], {padding}, truncation=True, max_length={processor.max_length}, return_tensors="np"
)
images = image_tower.run(None, {{"pixel_values": photos["pixel_values"]}})[0]
texts = text_tower.run(None, {{name: captions[name] for name in ("input_ids", "attention_mask")}})[0]
print(images @ texts.T)
```

Without transformers: `onnx.json` says how photos are resized, cropped and normalised, and `tokenizer.json` is read by
the library `tokenizers`. `logit_scale` in it is a natural log, as in every CLIP.
{notes}"""
