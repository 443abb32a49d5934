"""Exports load by the means of their target alone and give the model's embeddings, temperature and preprocessing."""

import json
import re
import sys

import open_clip
import pytest
import torch
from torch.nn.functional import normalize
from transformers import AutoModel, AutoProcessor, CLIPImageProcessor

from clip_itm.backbones.build import build_backbone, build_processor
from clip_itm.backbones.configuration import OpenClipBackbone
from clip_itm.cli import main
from clip_itm.configuration import ItmConfig
from clip_itm.hub import export_onnx, export_open_clip, export_transformers
from clip_itm.hub.clip_weights import model_cfg_of, to_huggingface, to_open_clip
from clip_itm.hub.export import check, draw_samples
from clip_itm.hub.export_onnx import PaddedGru
from clip_itm.image_processing import PIXEL_KEYS
from clip_itm.methods.clip.head import ClipHead
from clip_itm.model import ItmModel
from support.forks import run_python
from support.tiny_backbones import CAPTIONS, PHOTOS, TEXT, VIT, tiny_backbone
from support.tiny_exports import LONG, export, save, saved

pytestmark = pytest.mark.slow

OPEN_CLIP = {  # and a head whose temperature has to arrive
    "open_clip": {"kind": "clip"},
    "open_clip-resnet": {"kind": "clip", "max_logit_scale": 5.0},
    "open_clip-timm": {"kind": "npc"},
    "open_clip-siglip": {"kind": "crcl", "temperature": 0.04},
    "open_clip-bert": {"kind": "clip", "temperature": 0.5},
}


def embeddings(model, processor):
    batch = processor(images=PHOTOS, text=[*CAPTIONS, LONG])
    photos = {key: batch[key] for key in PIXEL_KEYS if key in batch}
    images = model.encode_images(**photos)
    return batch["pixel_values"], images, model.encode_texts(batch["input_ids"], batch["attention_mask"])


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


# open_clip ------------------------------------------------------------------------------------------------------------


def demand_equal_open_clip(folder, model, processor):
    native, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer, native = open_clip.get_tokenizer(f"local-dir:{folder}"), native.eval()
    pixels, images, texts = embeddings(model, processor)
    close(native.encode_image(pixels, normalize=True), images)
    close(native.encode_text(tokenizer([*CAPTIONS, LONG]), normalize=True), texts)
    assert native.logit_scale.exp().item() == pytest.approx(model.head.scale().item(), rel=1e-6)
    assert native.logit_bias is None or native.logit_bias.item() == pytest.approx(model.head.bias().item())
    if processor.images_as == "open_clip":
        photos = [*PHOTOS, *draw_samples(*pixels.shape[2:])]
        close(torch.stack([preprocess(photo) for photo in photos]), processor(images=photos)["pixel_values"])


@torch.no_grad()
@pytest.mark.parametrize("kind", OPEN_CLIP)
def test_open_clip_backbones_are_native_open_clip(kind, tmp_path):
    model, processor = saved(kind, tmp_path, OPEN_CLIP[kind])
    assert export(tmp_path, "open_clip") == 0
    demand_equal_open_clip(tmp_path / "open_clip", model, processor)
    config = json.loads((tmp_path / "open_clip" / "open_clip_config.json").read_text())
    assert {"size", "mean", "std", "interpolation", "resize_mode"} <= set(config["preprocess_cfg"])


@torch.no_grad()
@pytest.mark.parametrize("head", ["polyloss", "triplet", "siglip", "crossfit"])
def test_losses_around_the_cosine_are_exported_as_clip_is(head, tmp_path):
    model, processor = saved("open_clip-siglip", tmp_path, {"kind": head})
    assert export(tmp_path, "open_clip") == 0
    demand_equal_open_clip(tmp_path / "open_clip", model, processor)
    assert (model.head.bias().item() != 0) == (head == "siglip")


@torch.no_grad()
def test_a_clip_of_transformers_is_native_open_clip(tmp_path):
    model, processor = saved("clip", tmp_path)
    assert export(tmp_path, "open_clip") == 0
    demand_equal_open_clip(tmp_path / "open_clip", model, processor)


# transformers ---------------------------------------------------------------------------------------------------------


def demand_equal_transformers(folder, model, processor, padding: bool | str = True):
    native = AutoModel.from_pretrained(folder).eval()
    twin = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    pixels, images, texts = embeddings(model, processor)
    photos = twin.image_processor(PHOTOS, return_tensors="pt")
    assert torch.equal(photos["pixel_values"], pixels)
    probes = draw_samples(*pixels.shape[-2:])
    expected = processor(images=probes)["pixel_values"]
    assert torch.equal(twin.image_processor(probes, return_tensors="pt")["pixel_values"], expected)
    captions = twin.tokenizer([*CAPTIONS, LONG], padding=padding, truncation=True, return_tensors="pt")
    close(normalize(native.get_image_features(**photos).pooler_output, dim=-1), images)
    close(normalize(native.get_text_features(**captions).pooler_output, dim=-1), texts)
    logits = native(**photos, **captions).logits_per_image
    torch.testing.assert_close(logits, model.head.scale() * images @ texts.T, rtol=1e-4, atol=1e-4)
    return native


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param("clip", "CLIPModel", marks=pytest.mark.slow),
        ("siglip", "SiglipModel"),
        ("siglip2", "Siglip2Model"),
        ("bert-vit", "VisionTextDualEncoderModel"),
    ],
)
def test_backbones_of_transformers_are_their_own_class(kind, name, tmp_path):
    model, processor = saved(kind, tmp_path)
    assert export(tmp_path, "transformers") == 0
    native = demand_equal_transformers(
        tmp_path / "transformers", model, processor, "max_length" if kind.startswith("siglip") else True
    )
    assert type(native).__name__ == name


@torch.no_grad()
@pytest.mark.parametrize("quick", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_vit_of_open_clip_is_a_clip_model(quick, tmp_path):
    file = tmp_path / "vit.json"
    file.write_text(
        json.dumps({"embed_dim": 16, "quick_gelu": quick, "vision_cfg": VIT, "text_cfg": {**TEXT, "mlp_ratio": 2.0}})
    )
    section = OpenClipBackbone(model=str(file))
    processor = build_processor(section, None)
    model, processor = save(build_backbone(section, processor=processor), processor, tmp_path)
    assert export(tmp_path, "transformers") == 0
    native = demand_equal_transformers(tmp_path / "transformers", model, processor)
    assert type(native).__name__ == "CLIPModel"
    assert native.config.text_config.hidden_act == ("quick_gelu" if quick else "gelu")


def test_the_table_of_names_is_its_own_inverse(tmp_path):
    backbone, _ = tiny_backbone("open_clip", tmp_path)
    state = backbone.model.state_dict()
    back = to_open_clip(to_huggingface(state))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], value) for name, value in state.items())
    text = {f"text.{name}" if not name.startswith("visual.") else name: value for name, value in state.items()}
    assert to_huggingface(text).keys() == to_huggingface(state).keys()


# adapters, refusals, what else is in the folder -----------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("kind", ["open_clip", "bert-vit"])
def test_adapters_are_merged(kind, tmp_path):
    model, processor = saved(kind, tmp_path, lora={"rank": 2, "alpha": 8})
    plain = model.without_lora()
    assert not [name for name in plain.state_dict() if "lora" in name or "base_layer" in name]
    for ours, theirs in zip(embeddings(plain, processor), embeddings(model, processor), strict=True):
        close(ours, theirs)
    for module in model.modules():
        if hasattr(module, "lora_B"):
            module.lora_B["default"].weight.zero_()
    assert (embeddings(plain, processor)[1] - embeddings(model, processor)[1]).abs().max() > 1e-3
    target = "open_clip" if kind == "open_clip" else "transformers"
    assert export(tmp_path, target) == 0


@pytest.mark.parametrize(
    ("kind", "target", "answer"),
    [
        ("open_clip-resnet", export_transformers, "vision_cfg.layers: a ResNet"),
        ("open_clip-timm", export_transformers, "vision_cfg.timm_model_name"),
        ("open_clip-bert", export_transformers, "text_cfg.hf_model_name"),
        ("siglip", export_open_clip, "only CLIP can be written for open_clip, and this is siglip"),
        ("siglip2", export_open_clip, "only CLIP can be written for open_clip, and this is siglip2"),
        ("siglip2", export_onnx, "these towers read patches with a mask .*--to transformers can hold them"),
        ("bert-vit", export_open_clip, "open_clip cannot hold the towers of bert-vit"),
        ("bag", export_open_clip, "--to onnx can"),
        ("bag", export_transformers, "no class for the towers of timm-words; --to onnx can hold them"),
    ],
)
def test_what_a_target_cannot_hold_is_refused(kind, target, answer, tmp_path):
    backbone, processor = tiny_backbone(kind, tmp_path)
    model = ItmModel(ItmConfig(backbone=backbone.config.model_dump(mode="json")), backbone=backbone)
    with pytest.raises(ValueError, match=answer):
        target.write(model, processor, tmp_path)


def test_a_clip_that_open_clip_cannot_hold_is_refused(tmp_path):
    backbone, processor = tiny_backbone("clip", tmp_path)
    config = backbone.model.config
    config.text_config.hidden_act = "relu"
    with pytest.raises(ValueError, match="expected 1e-05, and gelu or quick_gelu in both towers"):
        model_cfg_of(config, processor.tokenizer)
    config.text_config.hidden_act = "quick_gelu"
    with pytest.raises(ValueError, match="has a tokenizer of its own"):
        model_cfg_of(config, tiny_backbone("siglip", tmp_path)[1].tokenizer)


@pytest.mark.parametrize("change", [{"resample": 0}, {"crop_size": {"height": 24, "width": 24}}])
def test_preprocessing_that_open_clip_does_not_have_is_refused(change):
    with pytest.raises(ValueError, match="open_clip has no such preprocessing of photos"):
        export_open_clip.preprocess_cfg(CLIPImageProcessor(**{"size": {"shortest_edge": 32}, **change}))


def test_a_head_with_rules_of_its_own_is_refused(tmp_path, capsys, monkeypatch):
    saved("open_clip-siglip", tmp_path)
    monkeypatch.setattr(ClipHead, "embed_images", lambda self, features: features.pooled)
    assert export(tmp_path, "open_clip") == 2
    assert "the head clip compares photos and captions with parameters or rules of its own" in capsys.readouterr().err


def test_wrong_weights_are_noticed_and_nothing_stays(tmp_path, capsys, monkeypatch):
    def swapped(state):
        state = to_huggingface(state)
        swap = {"layer_norm1": "layer_norm2", "layer_norm2": "layer_norm1"}
        return {re.sub(r"layer_norm[12]", lambda match: swap[match[0]], name): value for name, value in state.items()}

    saved("open_clip", tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    monkeypatch.setattr(export_transformers, "to_huggingface", swapped)
    assert export(tmp_path, "transformers") == 2
    assert "the exported model gives other embeddings of photos" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "change", [{"mean": [0.5, 0.4, 0.4]}, {"resize_mode": "squash"}, {"interpolation": "bilinear"}]
)
def test_other_pixels_are_noticed_and_nothing_stays(change, tmp_path, capsys, monkeypatch):
    saved("open_clip", tmp_path)
    right = export_open_clip.preprocess_cfg
    monkeypatch.setattr(export_open_clip, "preprocess_cfg", lambda processor: {**right(processor), **change})
    assert export(tmp_path, "open_clip") == 2
    assert "the exported preprocessing gives other pixels than the model's" in capsys.readouterr().err
    assert not (tmp_path / "open_clip").exists()


def test_the_folder_says_which_pixels_its_loader_gives(tmp_path, caplog):
    """open_clip has one crop, CLIPImageProcessor another: what cannot be the same is said, with the difference."""
    saved("open_clip", tmp_path)
    assert export(tmp_path, "open_clip") == 0
    assert "had the pixels of the model's processor." in (tmp_path / "open_clip" / "README.md").read_text("utf-8")
    assert export(tmp_path, "transformers") == 0
    text = (tmp_path / "transformers" / "README.md").read_text("utf-8")
    assert "had the pixels of the model's processor." in text
    assert 'AutoProcessor.from_pretrained("PATH", trust_remote_code=True)' in text
    assert re.search(r"cuts a quarter of them one pixel aside \(drawn ones: up to \d+ grey levels at [\d.]+ %", text)
    (tmp_path / "own").mkdir()
    saved("clip", tmp_path / "own")
    assert export(tmp_path / "own", "open_clip") == 0
    text = (tmp_path / "own" / "open_clip" / "README.md").read_text("utf-8")
    for said in (text, caplog.text):
        assert re.search(r"one pixel apart \(drawn ones: up to \d+ grey levels at [\d.]+ % of the values\)", said)
    assert export(tmp_path / "own", "transformers") == 0
    assert "trust_remote_code" not in (tmp_path / "own" / "transformers" / "README.md").read_text("utf-8")


def test_bad_places(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "full" / "config.json").write_text("{}")
    out = ["--to", "onnx", "--out"]
    for words, answer in (
        ([str(tmp_path / "nowhere"), *out, str(tmp_path / "new")], "there is no such folder"),
        ([str(tmp_path / "run"), *out, str(tmp_path / "new")], "this run is not finished"),
        ([str(tmp_path / "full"), *out, str(tmp_path / "full")], "exists and is not empty"),
        ([str(tmp_path / "full"), *out, str(tmp_path / "new"), "--data.root", "x"], "takes no keys of a recipe"),
    ):
        assert main(["export", *words]) == 2
        assert answer in capsys.readouterr().err
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine"


def test_a_missing_extra_is_named(tmp_path, capsys, monkeypatch):
    saved("bag", tmp_path)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert export(tmp_path, "onnx") == 2
    assert "--to onnx needs onnxruntime: pip install 'clip-itm[onnx]'" in capsys.readouterr().err


def test_the_folder_says_where_it_comes_from(tmp_path, capsys):
    saved("open_clip-siglip", tmp_path)
    run = tmp_path / "run"
    (tmp_path / "model").rename(tmp_path / "best")
    run.mkdir()
    (tmp_path / "best").rename(run / "best")
    known = {"recipe_sha256": "abc123", "noise": {"sha256": "def456", "ratio": 0.4}, "versions": {}, "splits": {}}
    (run / "best" / "provenance.json").write_text(json.dumps(known))
    (run / "best" / "recipe.yaml").write_text("head: {}\n")
    assert main(["export", str(run), "--to", "open_clip", "--out", str(tmp_path / "out")]) == 0
    assert "loaded again, its embeddings differ by at most" in capsys.readouterr().out
    text = (tmp_path / "out" / "README.md").read_text()
    assert "recipe `abc123`, noise `def456` (ratio 0.4)" in text
    assert 'open_clip.create_model_and_transforms("local-dir:PATH")' in text
    assert json.loads((tmp_path / "out" / "provenance.json").read_text()) == known
    assert (tmp_path / "out" / "recipe.yaml").read_text() == "head: {}\n"


def test_a_processor_of_another_model_is_noticed(tmp_path):
    saved("bag", tmp_path)
    _, processor = tiny_backbone("open_clip-resnet", tmp_path)
    processor.save_pretrained(tmp_path / "model")
    model = ItmModel.from_pretrained(tmp_path / "model").eval()
    with pytest.raises(ValueError, match="this model cannot read what its processor makes"):
        check(model, processor, tmp_path, None)


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "target"), [("open_clip-siglip", "open_clip"), ("bert-vit", "transformers")])
def test_a_process_without_this_package_loads_an_export(kind, target, tmp_path):
    model, processor = saved(kind, tmp_path)
    assert export(tmp_path, target) == 0
    code = f"""
import sys
sys.modules["clip_itm"] = None
import torch
{NATIVE[target]}
print(torch.nn.functional.normalize(texts, dim=-1).tolist())
"""
    said = run_python("-c", code.replace("PATH", str(tmp_path / target)), cwd=tmp_path)
    close(torch.tensor(json.loads(said.splitlines()[-1])), model.encode_texts(**processor(text=CAPTIONS[:1])))


NATIVE = {
    "open_clip": f"""
import open_clip
tokenizer = open_clip.get_tokenizer("local-dir:PATH")
texts = open_clip.create_model("local-dir:PATH").eval().encode_text(tokenizer([{CAPTIONS[0]!r}]))
""",
    "transformers": f"""
from transformers import AutoModel, AutoProcessor
captions = AutoProcessor.from_pretrained("PATH")(text=[{CAPTIONS[0]!r}], return_tensors="pt")
texts = AutoModel.from_pretrained("PATH").eval().get_text_features(**captions).pooler_output
""",
}


# onnx (the whole export is in test_export_onnx.py) --------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("layers", [1, 2])
def test_a_gru_without_packed_sequences_is_the_same(layers, tmp_path):
    backbone, processor = tiny_backbone("gru", tmp_path, text_layers=layers)
    batch = processor(text=[*CAPTIONS, "the"])
    mask = batch["attention_mask"].bool()
    pooled, tokens = backbone.eval().text_tower(batch["input_ids"], mask)
    same, states = PaddedGru(backbone.text_tower).eval()(batch["input_ids"], mask)
    close(same, pooled)
    close(states * mask[..., None], tokens * mask[..., None])
