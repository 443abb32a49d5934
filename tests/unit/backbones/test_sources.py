"""Where towers come from: names, files, folders, pretrained weights; and the errors for what cannot be had."""

import json
import logging

import numpy as np
import open_clip
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModel, CLIPModel, SiglipModel

from clip_itm.backbones.build import build_backbone, build_processor
from clip_itm.backbones.configuration import (
    BertVitBackbone,
    OpenClipBackbone,
    TimmWordsBackbone,
    TransformersBackbone,
)
from support.tiny_backbones import CAPTIONS, TEXT, VIT, tiny_backbone, tiny_config

TINY = {"embed_dim": 16, "vision_cfg": VIT, "text_cfg": TEXT}


def write_json(path, content) -> str:
    path.write_text(json.dumps(content))
    return str(path)


@pytest.fixture
def golden_clip(golden, tmp_path):
    """The golden tiny CLIP, loaded from a weights file with OpenAI's names, and its arrays."""
    arrays = golden("npc_tiny_clip")
    state = {key[3:]: torch.from_numpy(value) for key, value in arrays.items() if key.startswith("sd.")}
    save_file(state, tmp_path / "golden.safetensors")
    model = {
        "embed_dim": 24,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 128, "patch_size": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 50, "width": 32, "heads": 4, "layers": 2},
    }
    config = OpenClipBackbone(
        model=write_json(tmp_path / "golden.json", model), pretrained=str(tmp_path / "golden.safetensors")
    )
    return build_backbone(config).eval(), arrays


@torch.no_grad()
def test_golden_clip(golden_clip):
    backbone, arrays = golden_clip
    tokens = torch.from_numpy(arrays["tokens"]).long()
    images = backbone.image_neck(backbone.image_trunk(torch.from_numpy(arrays["images"]))).pooled
    texts = backbone.text_neck(backbone.text_trunk(tokens, torch.ones_like(tokens))).pooled
    np.testing.assert_allclose(images, arrays["image_features"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(texts, arrays["text_features"], rtol=1e-4, atol=1e-5)
    assert backbone.initial_logit_scale == pytest.approx(float(arrays["sd.logit_scale"]), abs=1e-6)
    unit = [torch.nn.functional.normalize(pooled, dim=-1) for pooled in (images, texts)]
    logits = np.exp(backbone.initial_logit_scale) * unit[0] @ unit[1].T
    np.testing.assert_allclose(logits, arrays["logits_per_image"], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_trimmed_captions_are_exact(golden_clip):
    backbone, arrays = golden_clip
    tokens = torch.from_numpy(arrays["tokens"]).long()
    lengths = tokens.argmax(1) + 1
    assert lengths.min() < tokens.shape[1]
    for row, length in zip(tokens, lengths, strict=True):
        trimmed = row[None, :length]
        pooled = backbone.text_trunk(trimmed, torch.ones_like(trimmed)).pooled[0]
        expected = arrays["text_features"][(tokens == row).all(1).nonzero()[0, 0]]
        np.testing.assert_allclose(pooled, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    "kind", ["open_clip", "open_clip-siglip", "open_clip-bert", "open_clip-resnet", "open_clip-timm"]
)
def test_towers_are_those_of_open_clip(kind, tmp_path):
    """Against open_clip's own encoders, on captions of full length."""
    backbone, processor = tiny_backbone(kind, tmp_path)
    backbone.eval()
    batch = processor(text=CAPTIONS)
    length = getattr(backbone.text_tower, "context_length", 24)
    full = torch.full((4, length), processor.pad_token_id)
    full[:, : batch["input_ids"].shape[1]] = batch["input_ids"]
    pooled = backbone.text_trunk(batch["input_ids"], batch["attention_mask"]).pooled
    torch.testing.assert_close(pooled, backbone.model.encode_text(full), rtol=1e-4, atol=1e-5)
    pixels = torch.randn(2, 3, *open_clip.model.to_2tuple(backbone.model.visual.image_size))
    torch.testing.assert_close(backbone.image_trunk(pixels).pooled, backbone.model.encode_image(pixels))


def test_local_folder_of_open_clip(tmp_path):
    torch.manual_seed(0)
    model = open_clip.CLIP(**TINY)
    content = {"model_cfg": TINY, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bilinear"}}
    content["preprocess_cfg"]["resize_mode"] = "squash"
    write_json(tmp_path / "open_clip_config.json", content)
    config = OpenClipBackbone(model=f"local-dir:{tmp_path}")
    with pytest.raises(ValueError, match=r"has none of open_clip_model\.safetensors"):
        build_backbone(config)
    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    backbone = build_backbone(config)
    assert backbone.initial_logit_scale == pytest.approx(np.log(1 / 0.07))
    assert backbone.initial_logit_bias is None
    pixels = torch.randn(2, 3, 32, 32)
    assert torch.equal(backbone.eval().image_trunk(pixels).pooled, model.eval().encode_image(pixels))
    processor = build_processor(config, None)
    grey = processor(images=[Image.new("RGB", (40, 90), (255, 255, 255))])["pixel_values"]
    assert grey.shape == (1, 3, 32, 32)
    torch.testing.assert_close(grey, torch.full_like(grey, 2.0))
    assert build_processor(backbone.config, None).image_processor.to_dict() == processor.image_processor.to_dict()


def test_open_clip_models_of_the_hub(tmp_path, monkeypatch):
    def hub(name, filename=None):
        assert name == "someone/tiny-clip"
        return str(tmp_path / (filename or "open_clip_model.safetensors"))

    monkeypatch.setattr("clip_itm.backbones.openclip_source.download_pretrained_from_hf", hub)
    write_json(tmp_path / "open_clip_config.json", {"model_cfg": TINY})
    state = open_clip.CLIP(**TINY).state_dict()
    save_file(state, tmp_path / "open_clip_model.safetensors")
    backbone = build_backbone(OpenClipBackbone(model="hf-hub:someone/tiny-clip"))
    assert all(torch.equal(value, state[name]) for name, value in backbone.model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "ViT-B-33"}, r"ViT-B-33: open_clip knows no such model \(near: ViT-B-32"),
        ({"model": "ViT-B-32", "pretrained": "openia"}, r"openia: ViT-B-32 has no such pretrained tag.*tags: openai"),
        ({"model": "local-dir:/nowhere"}, "there is no such file; expected an open_clip configuration"),
        ({"model": "missing.json"}, "missing.json: there is no such file"),
        ({"model": "coca_ViT-B-32"}, "CoCa models have a text decoder"),
    ],
)
def test_unknown_open_clip_models(options, message):
    with pytest.raises(ValueError, match=message):
        build_backbone(OpenClipBackbone(**options), weights=False)


def test_open_clip_without_network(tmp_path, monkeypatch):
    def no_network(*_, **__):
        raise FileNotFoundError("offline")

    monkeypatch.setattr(open_clip, "download_pretrained", no_network)
    config = OpenClipBackbone(model="RN50-quickgelu", pretrained="openai")
    with pytest.raises(ValueError, match=r"RN50-quickgelu \(openai\): cannot get the weights: offline.*weights file"):
        build_backbone(config)


def test_quickgelu_follows_the_weights(caplog):
    with caplog.at_level(logging.WARNING):
        config = OpenClipBackbone(model="ViT-B-32", pretrained="openai")
        processor = build_processor(config, None)
    assert "ViT-B-32 with openai: these weights were trained with QuickGELU" in caplog.text
    assert processor.image_processor.image_mean == pytest.approx(open_clip.OPENAI_DATASET_MEAN)
    caplog.clear()
    build_processor(OpenClipBackbone(model="ViT-B-32", pretrained="laion2b_s34b_b79k"), None)
    build_processor(OpenClipBackbone(model="ViT-B-32-quickgelu", pretrained="openai"), None)
    assert not caplog.text


def test_weights_that_do_not_fit(tmp_path):
    state = open_clip.CLIP(**TINY).state_dict()
    del state["ln_final.weight"]
    save_file(state, tmp_path / "bad.safetensors")
    model = write_json(tmp_path / "tiny.json", TINY)
    with pytest.raises(ValueError, match=r"(?s)bad.safetensors is not weights of .*ln_final.weight"):
        build_backbone(OpenClipBackbone(model=model, pretrained=str(tmp_path / "bad.safetensors")))
    with pytest.raises(ValueError, match=r"cannot get the weights: gone\.pt is no file"):
        build_backbone(OpenClipBackbone(model=model, pretrained="gone.pt"))


@pytest.mark.parametrize("kind", ["open_clip-timm", "bag"])
def test_weights_of_a_timm_tower_alone(kind, tmp_path):
    name = "test_vit" if kind == "open_clip-timm" else "test_efficientnet"
    torch.manual_seed(3)
    tower = timm.create_model(name, num_classes=7)  # its classifier is left out
    state = tower.state_dict()
    save_file(state, tmp_path / "tower.safetensors")
    backbone, _ = tiny_backbone(kind, tmp_path, image_weights=str(tmp_path / "tower.safetensors"))
    trunk = backbone.model.visual.trunk if kind == "open_clip-timm" else backbone.image_tower
    assert trunk.state_dict().keys() < state.keys()
    assert all(torch.equal(value, state[name]) for name, value in trunk.state_dict().items())
    save_file({"extra": torch.zeros(1)}, tmp_path / "tower.safetensors")
    with pytest.raises(ValueError, match=r"tower.safetensors is not safetensors weights of this timm tower"):
        tiny_backbone(kind, tmp_path, image_weights=str(tmp_path / "tower.safetensors"))


def test_image_weights_need_a_timm_tower(tmp_path):
    with pytest.raises(ValueError, match=r"image_weights: .* has no vision_cfg.timm_model_name"):
        tiny_backbone("open_clip", tmp_path, image_weights="any.safetensors")


def test_unknown_timm_models():
    processor = build_processor(TimmWordsBackbone(min_word_count=1), CAPTIONS)
    with pytest.raises(ValueError, match=r"mobilenetv2_10: timm knows no such model \(near: mobilenetv2_1"):
        build_backbone(TimmWordsBackbone(image_model="mobilenetv2_10"), processor=processor)
    config = TimmWordsBackbone(image_pretrained=False, image_kwargs={"no_such": 1})
    with pytest.raises(ValueError, match="do not suit this timm model"):
        build_backbone(config, processor=processor)


@pytest.mark.real_data
@torch.no_grad()
def test_real_mobilenet(real_data):
    config = TimmWordsBackbone(
        image_kwargs={"pad_type": "same"},
        image_weights=str(real_data / "weights" / "mobilenetv2_100_tf_same.safetensors"),
        min_word_count=1,
    )
    processor = build_processor(config, CAPTIONS)
    backbone = build_backbone(config, processor=processor).eval()
    folder = real_data / "flickr8k" / "images"
    photos = [Image.open(path) for path in sorted(folder.glob("*.jpg"))[:4]]
    pixels = processor(images=photos)["pixel_values"]
    assert pixels.shape == (4, 3, 224, 224)
    np.testing.assert_allclose(pixels[0, 0], np.asarray(photos[0])[..., 0] / 127.5 - 1, atol=1e-5)
    features = backbone.image_trunk(pixels)
    assert features.pooled.shape == (4, 1280)
    # trained features tell photos apart: unit vectors of random weights would nearly coincide
    unit = torch.nn.functional.normalize(features.pooled, dim=-1)
    assert (unit @ unit.T).fill_diagonal_(0).max() < 0.8
    assert backbone.image_neck(features).pooled.shape == (4, 256)


@torch.no_grad()
def test_clip_of_transformers(tmp_path):
    backbone, processor = tiny_backbone("clip", tmp_path)
    model = CLIPModel.from_pretrained(tmp_path / "clip").eval()
    assert backbone.initial_logit_scale == pytest.approx(model.logit_scale.item())
    batch = processor(text=CAPTIONS)
    texts = model.get_text_features(**batch).pooler_output
    torch.testing.assert_close(backbone.eval().text_trunk(**batch).pooled, texts)


@torch.no_grad()
def test_siglip_of_transformers(tmp_path):
    backbone, processor = tiny_backbone("siglip", tmp_path)
    model = SiglipModel.from_pretrained(tmp_path / "siglip").eval()
    assert backbone.initial_logit_scale == pytest.approx(model.logit_scale.item())
    assert backbone.initial_logit_bias == pytest.approx(model.logit_bias.item())
    batch = processor(text=CAPTIONS)
    assert batch["input_ids"].shape == (4, 16)
    texts = model.get_text_features(input_ids=batch["input_ids"]).pooler_output  # as it was trained: no mask
    torch.testing.assert_close(backbone.eval().text_trunk(**batch).pooled, texts)


def test_weights_are_float32_whatever_was_saved(tmp_path):
    tiny_config("clip", tmp_path)
    CLIPModel.from_pretrained(tmp_path / "clip").half().save_pretrained(tmp_path / "clip")
    config = TransformersBackbone(model=str(tmp_path / "clip"))
    backbone = build_backbone(config)
    assert {parameter.dtype for parameter in backbone.parameters()} == {torch.float32}
    scratch = build_backbone(config.model_copy(update={"from_scratch": True}))
    assert {parameter.dtype for parameter in scratch.parameters()} == {torch.float32}


def test_from_scratch_loads_no_weights(tmp_path):
    backbone, _ = tiny_backbone("clip", tmp_path)
    scratch, _ = tiny_backbone("clip", tmp_path, from_scratch=True)
    assert scratch.initial_logit_scale is None
    name = "model.text_model.embeddings.token_embedding.weight"
    assert not torch.equal(backbone.state_dict()[name], scratch.state_dict()[name])


def test_pretrained_towers_of_bert_vit(tmp_path):
    backbone, _ = tiny_backbone("bert-vit", tmp_path)
    for tower, folder in ((backbone.model.text_model, "bert"), (backbone.model.vision_model, "vit")):
        saved = AutoModel.from_pretrained(tmp_path / folder).state_dict()
        assert all(torch.equal(value, saved[name]) for name, value in tower.state_dict().items())


@pytest.mark.parametrize(
    "config",
    [
        TransformersBackbone(model="no-such-organisation/no-such-clip"),
        BertVitBackbone(text_model="no-such-organisation/no-such-bert", vision_model="also/not-there"),
    ],
)
def test_models_that_cannot_be_loaded(config):
    with pytest.raises(ValueError, match=r"(no-such|not-there).*: cannot load this model.*save_pretrained"):
        build_backbone(config)


def test_towers_of_the_wrong_form(tmp_path):
    tiny_config("bert-vit", tmp_path)
    processor = build_processor(BertVitBackbone(text_model=f"{tmp_path}/bert", vision_model=f"{tmp_path}/vit"), None)
    tiny_config("clip", tmp_path)
    config = BertVitBackbone(text_model=f"{tmp_path}/bert", vision_model=f"{tmp_path}/clip")
    with pytest.raises(ValueError, match="CLIPModel is no single transformer tower"):
        build_backbone(config, processor=processor)
    with pytest.raises(ValueError, match="BertModel is no two-tower model"):
        build_backbone(TransformersBackbone(model=f"{tmp_path}/bert"), processor=processor)
