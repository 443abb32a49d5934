"""Compiled layers: what the towers computed, for any number of photos and any length of captions; names stay."""

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from clip_itm.backbones.configuration import OpenClipBackbone
from clip_itm.configuration import ItmConfig
from clip_itm.model import ItmModel
from clip_itm.training.compiled import compile_layers
from clip_itm.training.gradient_cache import Chunks, encoding_in_chunks
from support.tiny_backbones import KINDS, batch_of, tiny_backbone

ARCHITECTURE = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 24, "vocab_size": 100, "width": 16, "heads": 2, "layers": 2},
}


@pytest.fixture(autouse=True)
def _forgets_programs():
    torch._dynamo.reset()
    limit = torch._dynamo.config.recompile_limit
    yield
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = limit


def make_model() -> ItmModel:
    torch.manual_seed(0)
    section = OpenClipBackbone(model="tiny", model_config_dict={"model_cfg": ARCHITECTURE}, special_token_ids=(0, 99))
    return ItmModel(ItmConfig(backbone=section.model_dump(mode="json"), head={"kind": "clip"})).double().train()


def step(model: ItmModel, pairs: int, length: int, chunk: int | None = None) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    captions, numbers = torch.randint(1, 98, (pairs, length), generator=generator), torch.arange(pairs)
    captions[:, -1] = 99
    inputs = {"pixel_values": torch.randn(pairs, 3, 32, 32, generator=generator, dtype=torch.float64)}
    inputs |= {"input_ids": captions, "attention_mask": torch.ones_like(captions), "image_index": numbers}
    model.zero_grad()
    with encoding_in_chunks(model, None if chunk is None else Chunks(chunk)):
        loss = model(**inputs, image_ids=numbers, pair_ids=numbers).loss
    loss.backward()
    found = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    return {"loss": loss.detach(), **found}


def assert_equal(found: dict, expected: dict, tolerance: float = 1e-9) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= tolerance * max(value.abs().max(), 1e-4), name


@pytest.mark.slow
@pytest.mark.parametrize("recomputes", [False, True])
def test_losses_and_gradients_are_those_without(recomputes):
    """With the compiler itself; batches of other sizes, with the gradient cache, with recomputed layers."""
    plain, model = make_model(), make_model()
    model.backbone.set_activation_checkpointing(recomputes)
    compile_layers(model.backbone)
    for pairs, length, chunk in ((7, 6, None), (5, 9, None), (8, 4, 3)):
        assert_equal(step(model, pairs, length, chunk), step(plain, pairs, length))
    assert list(model.state_dict()) == list(plain.state_dict())


def test_a_layer_is_compiled_once_for_all_sizes_and_all_layers_of_its_tower():
    model, counter = make_model(), CompileCounter()
    compile_layers(model.backbone, counter)
    counter.clear()
    for pairs, length in ((7, 6), (5, 9), (8, 4), (3, 12)):
        step(model, pairs, length)
    assert counter.frame_count == 2, "a program for each tower"
    with torch.no_grad():
        step_in_evaluation = model.eval().encode_texts(torch.full((6, 5), 99), torch.ones(6, 5, dtype=torch.long))
    assert step_in_evaluation.isfinite().all()
    assert counter.frame_count <= 4


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_tower_gives_the_same(kind, tmp_path):
    """Without the compiler: what it is given is what the layers compute."""
    backbone, processor = tiny_backbone(kind, tmp_path)
    images, *captions = batch_of(processor)
    backbone.eval()
    with torch.no_grad():
        expected = backbone.image_trunk(**images).pooled, backbone.text_trunk(*captions).pooled
        compile_layers(backbone, "eager")
        found = backbone.image_trunk(**images).pooled, backbone.text_trunk(*captions).pooled
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    compiled = [module for module in backbone.modules() if module._compiled_call_impl is not None]
    assert len(compiled) >= 2 or not any(isinstance(module, nn.MultiheadAttention) for module in backbone.modules())


def test_where_nothing_can_be_compiled_the_error_says_what_to_install(monkeypatch):
    def missing(*_, **__):
        raise RuntimeError("No working C++ compiler found\nmore")

    monkeypatch.setattr(torch, "compile", missing)
    with pytest.raises(ValueError, match=r"training\.compile: .* \(No working C\+\+ compiler found\); install a C\+\+"):
        compile_layers(make_model().backbone)
