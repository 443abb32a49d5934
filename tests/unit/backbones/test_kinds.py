"""What every kind of backbone has to do."""

import json

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from clip_itm.backbones.blocks import modules, parameters
from clip_itm.backbones.build import add_lora, build_backbone, build_processor
from clip_itm.backbones.configuration import BackboneConfig
from clip_itm.backbones.features import FeatureWidths
from support.tiny_backbones import (
    CAPTIONS,
    KINDS,
    TRANSFORMERS,
    batch_of,
    dropout_free,
    embed,
    gradients,
    tiny_backbone,
    tiny_config,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the tiny models are saved, once for all tests."""
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


def test_shapes_and_gradients(kind, folder):
    backbone, processor = tiny_backbone(kind, folder)
    images, texts = embed(backbone.eval(), batch_of(processor))
    assert images.shape == texts.shape == (4, backbone.embed_dim)
    assert images.dtype == texts.dtype == torch.float32
    assert images.std(0).min() > 0
    assert texts.std(0).min() > 0
    found = gradients(backbone.train(), batch_of(processor))
    # in a mean-pooled BERT inside open_clip nothing is unused; transformers' SigLIP and CLIP use all they have
    assert set(found) == {name for name, _ in backbone.named_parameters()}


def test_bfloat16_autocast(kind, folder):
    backbone, processor = tiny_backbone(kind, folder, **({"lora": {}} if kind in TRANSFORMERS else {}))
    if backbone.config.lora:
        add_lora(backbone, backbone.config.lora)
    plain = embed(backbone.eval(), batch_of(processor))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = embed(backbone, batch_of(processor))
        rounded[0].float().sum().backward()
    for one, other in zip(plain, rounded, strict=True):
        assert torch.nn.functional.cosine_similarity(one, other.float()).min() > 0.99


def test_tokens_and_masks(kind, folder):
    backbone, processor = tiny_backbone(kind, folder)
    photos, input_ids, attention_mask = batch_of(processor)
    backbone.eval()
    plain = backbone.image_trunk(**photos), backbone.text_trunk(input_ids, attention_mask)
    assert plain[0].tokens is plain[1].tokens is plain[0].mask is plain[1].mask is None
    backbone.output_tokens = True
    images, texts = backbone.image_trunk(**photos), backbone.text_trunk(input_ids, attention_mask)
    torch.testing.assert_close(images.pooled, plain[0].pooled)
    torch.testing.assert_close(texts.pooled, plain[1].pooled)
    patches = {"open_clip-timm": 100, "siglip2": 12}
    patches |= dict.fromkeys(("open_clip-resnet", "bag", "gru", "transformer", "sentence"), 1)
    assert images.tokens.shape[:2] == (4, patches.get(kind, 4))
    assert (images.mask is not None) == backbone.pads_images == (kind == "siglip2")
    assert texts.tokens.shape[:2] == texts.mask.shape == input_ids.shape
    ends = 2 if kind == "sentence" else 0  # heads of the literature read BERT's start and end tokens, too
    assert texts.mask.sum(1).tolist() == [len(caption.split()) + ends for caption in CAPTIONS]
    assert backbone.widths == FeatureWidths(backbone.embed_dim, images.tokens.shape[2], texts.tokens.shape[2])
    behind = backbone.text_neck(texts)
    assert behind.tokens is texts.tokens
    assert behind.mask is texts.mask


def test_blocks_hold_every_parameter_of_the_trunks_once(kind, folder):
    backbone, _ = tiny_backbone(kind, folder)
    blocks = [*backbone.image_blocks(), *backbone.text_blocks()]
    inside = [id(parameter) for parameter in parameters(blocks)]
    assert len(inside) == len(set(inside))
    necks = {name for name, parameter in backbone.named_parameters() if id(parameter) not in set(inside)}
    projections = {"bert-vit": {"model.visual_projection.weight", "model.text_projection.weight"}}
    image_projection = {"image_projection.weight", "image_projection.bias"}
    from_scratch = {"bag": image_projection, "gru": image_projection, "transformer": image_projection}
    mlp = {f"text_mlp.{layer}.{name}" for layer in (0, 3) for name in ("weight", "bias")}
    assert necks == (projections | from_scratch | {"sentence": image_projection | mlp}).get(kind, set())
    assert all(list(parameters([block])) for block in backbone.image_blocks()[:-1])
    whole = backbone.text_blocks()[:-1] if kind == "sentence" else backbone.text_blocks()  # its top is in the neck
    assert all(list(parameters([block])) for block in whole)


def test_blocks_are_in_order(kind, folder):
    """A block that holds still gets the same input whatever is above it: changing block k changes no block below it."""
    backbone, processor = tiny_backbone(kind, folder)
    batch = batch_of(processor)
    backbone.eval()
    order: list[int] = []
    for blocks, run in (
        (backbone.image_blocks(), lambda: backbone.image_trunk(**batch[0])),
        (backbone.text_blocks(), lambda: backbone.text_trunk(*batch[1:])),
    ):
        order.clear()
        hooks = []
        for number, block in enumerate(blocks):
            leaves = [
                leaf for module in modules([block]) for leaf in module.modules() if list(leaf.parameters(recurse=False))
            ]
            hooks += [leaf.register_forward_hook(lambda *_, number=number: order.append(number)) for leaf in leaves]
        with torch.no_grad():
            run()
        for hook in hooks:
            hook.remove()
        assert order
        assert order == sorted(order)
        assert len(set(order)) > 1


def test_checkpointed_gradients_are_equal(kind, folder):
    backbone, processor = tiny_backbone(kind, folder)
    backbone.eval()  # batch norm of the batch would be updated twice; gradients flow all the same
    dropout_free(backbone)
    batch = batch_of(processor)
    plain = gradients(backbone, batch)
    if kind == "open_clip-resnet":
        with pytest.raises(ValueError, match="ResNet towers have no activation checkpointing"):
            backbone.set_activation_checkpointing(True)
        return
    saved = []
    backbone.train()
    for module in backbone.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    backbone.set_activation_checkpointing(True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        images, texts = embed(backbone, batch)
        kept = sum(saved)
    del images, texts
    checkpointed = gradients(backbone, batch)
    assert set(checkpointed) == set(plain)
    for name in plain:
        torch.testing.assert_close(checkpointed[name], plain[name], rtol=1e-4, atol=1e-5, msg=name)
    backbone.set_activation_checkpointing(False)
    saved.clear()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        embed(backbone, batch)
    assert sum(saved) > kept


def test_rebuilt_from_the_resolved_section(kind, tmp_path):
    made = tmp_path / "made"
    made.mkdir()
    backbone, processor = tiny_backbone(kind, made)
    content = json.loads(json.dumps(backbone.config.model_dump(mode="json")))
    made.rename(tmp_path / "gone")  # nothing outside the section may be needed
    config = TypeAdapter(BackboneConfig).validate_python(content)
    with torch.device("meta"):  # as transformers does while it loads
        again = build_backbone(config, weights=False)
    assert all(tensor.device.type == "cpu" for tensor in [*again.parameters(), *again.buffers()])
    assert again.config == backbone.config
    assert again.initial_logit_scale is None
    again.load_state_dict(backbone.state_dict())
    for one, other in zip(
        embed(backbone.eval(), batch_of(processor)), embed(again.eval(), batch_of(processor)), strict=True
    ):
        assert torch.equal(one, other)


def test_full_length_only_where_the_tower_needs_it(kind, folder):
    config = tiny_config(kind, folder)
    processor = build_processor(config, CAPTIONS)
    assert processor.pad_to_max_length == (kind in ("siglip", "siglip2", "open_clip-siglip"))
    width = processor(text=["two cats"])["input_ids"].shape[1]
    specials = {"bag": 0, "gru": 0, "transformer": 0}
    assert width == (16 if processor.pad_to_max_length else 2 + specials.get(kind, 2))


def test_captions_do_not_depend_on_their_neighbours(kind, folder):
    backbone, processor = tiny_backbone(kind, folder)
    backbone.eval()
    together = backbone.text_trunk(*batch_of(processor)[1:]).pooled
    for number, caption in enumerate(CAPTIONS):
        alone = processor(text=[caption])
        pooled = backbone.text_trunk(alone["input_ids"], alone["attention_mask"]).pooled
        torch.testing.assert_close(pooled[0], together[number], rtol=1e-4, atol=1e-5)
