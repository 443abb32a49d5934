"""Both towers in onnxruntime: any batch, any length of captions, every kind of backbone."""

import json

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import AutoImageProcessor, AutoTokenizer

from support.tiny_backbones import CAPTIONS, KINDS, PHOTOS
from support.tiny_exports import LONG, export, saved

pytestmark = pytest.mark.filterwarnings("ignore")


@torch.no_grad()
@pytest.mark.parametrize(
    "kind",
    [
        kind if kind == "bag" else pytest.param(kind, marks=pytest.mark.slow)
        for kind in KINDS
        if kind != "siglip2"  # refused (test_export.py)
    ],
)
def test_both_towers_in_onnxruntime(kind, tmp_path):
    model, processor = saved(kind, tmp_path)
    assert export(tmp_path, "onnx") == 0
    folder = tmp_path / "onnx"
    described = json.loads((folder / "onnx.json").read_text())
    text = described["text"]
    towers = {
        name: onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])
        for name in ("image", "text")
    }
    images = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
    for count in (1, 3, 4):
        photos = PHOTOS[:count]
        pixels = images(photos, return_tensors="np")["pixel_values"]
        assert list(pixels.shape[1:]) == described["image"]["input"]["pixel_values"][1:]
        found = towers["image"].run(None, {"pixel_values": pixels})[0]
        expected = model.encode_images(processor(images=photos)["pixel_values"])
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for captions in (CAPTIONS, [CAPTIONS[3]], [LONG, CAPTIONS[1]]):
        padding = "max_length" if text["pad_to_max_length"] else True
        tokens = tokenizer(
            captions, padding=padding, truncation=True, max_length=text["max_length"], return_tensors="np"
        )
        texts = towers["text"].run(None, {name: tokens[name] for name in text["input"]})[0]
        np.testing.assert_allclose(texts, model.encode_texts(**processor(text=captions)), rtol=0, atol=1e-5)
    assert texts.shape[1] == text["output"]["text_embeds"][1]
    assert np.exp(described["logit_scale"]) == pytest.approx(model.head.scale().item(), rel=1e-6)
    free = [0, "length" not in str(towers["text"].get_inputs()[0].shape)]
    assert free == [0, processor.pad_to_max_length]  # a tower that reads captions of one length has that in its file
