"""Frozen towers and blocks, dropout, hidden words, adapters: for every kind of backbone."""

import copy

import pytest
import torch

from clip_itm.backbones.blocks import modules
from clip_itm.backbones.build import add_lora, freeze
from clip_itm.backbones.features import Features
from clip_itm.backbones.section import LoraSection
from support.tiny_backbones import (
    KINDS,
    TRANSFORMERS,
    batch_of,
    dropout_free,
    embed,
    gradients,
    tiny_backbone,
    tiny_config,
    trunk_names,
)

SCRATCH = ("bag", "gru", "transformer")  # text towers of timm-words


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the tiny models are saved, once for all tests."""
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


def test_frozen_towers_hold_still(kind, folder):
    options = {"freeze_image": True} if kind in SCRATCH else {"freeze_image": True, "freeze_text": True}
    backbone, processor = tiny_backbone(kind, folder, **options)
    freeze(backbone, backbone.config)
    before = copy.deepcopy(backbone.state_dict())
    for _ in range(2):
        backbone.train()
        images, texts = embed(backbone, batch_of(processor))
        if images.requires_grad or texts.requires_grad:
            (images.square().sum() + texts.square().sum()).backward()
    found = {name for name, parameter in backbone.named_parameters() if parameter.grad is not None}
    frozen = trunk_names(backbone, backbone.image_blocks())
    if kind not in SCRATCH:
        frozen |= trunk_names(backbone, backbone.text_blocks())
    assert frozen
    assert found == {name for name, _ in backbone.named_parameters()} - frozen
    assert not any(module.training for module in modules(backbone.image_blocks()))
    after = backbone.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)  # batch-norm statistics among them
    twin = copy.deepcopy(backbone).train()
    assert not any(module.training for module in modules(twin.image_blocks()))
    assert all(twin_part is not part for twin_part, part in zip(twin._frozen, backbone._frozen, strict=True))


def test_batch_norm_moves_unless_frozen(folder):
    backbone, processor = tiny_backbone("bag", folder)
    before = copy.deepcopy(backbone.state_dict())
    backbone.train().image_trunk(**batch_of(processor)[0])
    moved = [name for name, value in backbone.state_dict().items() if not torch.equal(value, before[name])]
    assert any("running_mean" in name for name in moved)


@pytest.mark.parametrize("lowest", [1, 2])
def test_frozen_lower_blocks(kind, folder, lowest):
    options = {"freeze_image_blocks": lowest} | ({} if kind in SCRATCH else {"freeze_text_blocks": lowest})
    backbone, processor = tiny_backbone(kind, folder, **options)
    freeze(backbone, backbone.config)
    found = set(gradients(backbone.train(), batch_of(processor)))
    still = trunk_names(backbone, backbone.image_blocks()[: lowest + 1])
    if kind not in SCRATCH:
        still |= trunk_names(backbone, backbone.text_blocks()[: lowest + 1])
    assert found == {name for name, _ in backbone.named_parameters()} - still


def test_too_many_frozen_blocks(folder):
    backbone, _ = tiny_backbone("open_clip", folder, freeze_text_blocks=3)
    with pytest.raises(ValueError, match="freeze_text_blocks: 3 is more than the 2 blocks of the text tower"):
        freeze(backbone, backbone.config)


def test_word_dropout(kind, folder):
    backbone, processor = tiny_backbone(kind, folder, word_dropout=0.5)
    _, input_ids, attention_mask = batch_of(processor)
    dropout_free(backbone)
    backbone.eval()
    assert backbone.drop_words(input_ids, attention_mask) is input_ids
    still = backbone.text_trunk(input_ids, attention_mask).pooled
    assert torch.equal(still, backbone.text_trunk(input_ids, attention_mask).pooled)
    backbone.train()
    drawn = [backbone.text_trunk(input_ids, attention_mask).pooled for _ in range(4)]
    assert not all(torch.allclose(still, pooled, atol=1e-4) for pooled in drawn)
    words = backbone.words(input_ids, attention_mask)
    hidden = torch.zeros(input_ids.shape)
    for _ in range(200):
        ids = backbone.drop_words(input_ids, attention_mask)
        changed = ids != input_ids
        assert not changed[~words].any()
        assert (ids[changed] == backbone.config.hidden_word_id).all()
        assert ((words & ~changed).sum(1) >= 1).all()
        hidden += changed
    share = hidden[2][words[2]] / 200  # eight words: the one that has to stay hardly matters
    assert share.min() > 0.3
    assert share.max() < 0.65


def test_word_dropout_reaches_every_text_tower_of_words(folder):
    """A hidden word of timm-words is left out, not replaced: with all others hidden, only one word is left."""
    backbone, processor = tiny_backbone("bag", folder, word_dropout=0.999)
    _, input_ids, attention_mask = batch_of(processor)
    ids = torch.arange(2, backbone.config.vocab_size)[:, None]
    single = backbone.eval().text_tower(ids, torch.ones_like(ids, dtype=torch.bool))[0]
    pooled = backbone.train().text_trunk(input_ids, attention_mask).pooled
    assert torch.cdist(pooled, single).min(1).values.max() < 1e-5


def test_dropout_on_pooled_features_and_tokens(kind, folder):
    backbone, _ = tiny_backbone(kind, folder, image_dropout=0.9, text_dropout=0.9)
    width = {"bert-vit": 32, "siglip": 32, "siglip2": 32, "sentence": 32}.get(kind, 16)
    of_timm = kind in (*SCRATCH, "sentence")
    widths = {"image": backbone.image_projection.in_features if of_timm else width, "text": width}
    for name, neck in (("image", backbone.image_neck), ("text", backbone.text_neck)):
        features = Features(torch.rand(4, widths[name]) + 1, torch.rand(4, 5, 7) + 1, torch.rand(4, 5) < 0.5)
        one, other = (neck(features) for _ in range(2))
        assert not torch.equal(one.pooled, other.pooled), name
        assert not torch.equal(one.tokens, other.tokens), name
        assert 0 < (one.tokens == 0).float().mean() < 1, name
        assert one.mask is features.mask
        assert neck(Features(features.pooled)).tokens is None
        backbone.eval()
        assert torch.equal(neck(features).pooled, neck(features).pooled)
        assert torch.equal(neck(features).tokens, features.tokens)
        backbone.train()


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_lora_trains_only_adapters(kind, folder):
    backbone, processor = tiny_backbone(kind, folder, lora={"rank": 2})
    batch = batch_of(processor)
    before = [value.clone() for value in embed(backbone.eval(), batch)]
    weights = {name: value.clone() for name, value in backbone.state_dict().items()}
    add_lora(backbone, backbone.config.lora)
    for one, other in zip(before, embed(backbone.eval(), batch), strict=True):
        torch.testing.assert_close(one, other)  # B starts at zero
    necks = {"model.visual_projection.weight", "model.text_projection.weight"} if kind == "bert-vit" else set()
    trained = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    assert trained - necks
    assert necks <= trained
    assert all("lora_" in name for name in trained - necks)
    towers = [{name for name in trained if name.startswith(part)} for part in _prefixes(kind)]
    assert all(towers), "an adapter in each tower"
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):
        assert set(gradients(backbone.train(), batch)) == trained
        optimizer.step()
        with torch.inference_mode():
            embed(backbone.eval(), batch)
    after = backbone.state_dict()
    kept = {name.replace("base_layer.", ""): value for name, value in after.items() if "lora_" not in name}
    kept = {name.replace("in_proj.", "in_proj_") if ".attn.in_proj." in name else name: kept[name] for name in kept}
    assert kept.keys() == weights.keys()
    assert all(torch.equal(kept[name], weights[name]) for name in kept.keys() - necks)
    again, _ = tiny_backbone(kind, folder, seed=1, lora={"rank": 2})
    add_lora(again, again.config.lora)
    again.load_state_dict(after)
    for one, other in zip(embed(backbone.eval(), batch), embed(again.eval(), batch), strict=True):
        torch.testing.assert_close(one, other)
    assert not torch.allclose(embed(again, batch)[0], before[0], atol=1e-3)


def _prefixes(kind: str) -> tuple[str, str]:
    if kind.startswith("open_clip"):
        return "model.visual.", "model.t"
    return "model.vision_model.", "model.text_model."


def test_lora_leaves_frozen_towers_alone(folder):
    backbone, _ = tiny_backbone("clip", folder, lora={"targets": ["q_proj", "v_proj"]}, freeze_image=True)
    add_lora(backbone, backbone.config.lora)
    freeze(backbone, backbone.config)
    trained = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    assert len(trained) == 8
    assert all(".text_model." in name and ("q_proj" in name or "v_proj" in name) for name in trained)


def test_lora_names_the_layers_there_are(folder):
    backbone, _ = tiny_backbone("clip", folder)
    with pytest.raises(ValueError, match=r"no layer is called \['query'\]; the names here end with fc1, fc2, k_proj"):
        add_lora(backbone, LoraSection(targets=["query"]))


def test_lora_without_peft(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    backbone, _ = tiny_backbone("clip", folder)
    with pytest.raises(ValueError, match=r"pip install 'clip-itm\[lora\]'"):
        add_lora(backbone, LoraSection())


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("open_clip", {"freeze_image": True, "freeze_image_blocks": 2}, "leave freeze_image_blocks out"),
        ("open_clip", {"lora": {}, "freeze_text_blocks": 2}, "lora freezes every block"),
        ("open_clip", {"lora": {}, "freeze_image": True, "freeze_text": True}, "adapts nothing"),
        ("clip", {"freeze_text": True, "word_dropout": 0.1}, "word_dropout does nothing"),
        ("clip", {"from_scratch": True, "freeze_image": True}, "would keep random weights"),
        ("open_clip", {"image_weights": "x.safetensors", "pretrained": "y.pt"}, "image_weights goes with"),
        ("bag", {"freeze_text": True}, "freeze_text: text_encoder bag starts from random weights"),
        ("sentence", {"freeze_text": True, "text_projection": True}, "set text_projection: mlp, which trains on top"),
        ("sentence", {"freeze_text": True, "text_pooling": "gpo"}, "text_pooling gpo would keep random weights"),
        ("sentence", {"freeze_text": True, "word_dropout": 0.1}, "word_dropout does nothing"),
        ("sentence", {"text_projection": True}, "text_hidden: text_encoder bert has sizes of its own"),
        ("bag", {"text_projection": "mlp"}, "text_projection: it belongs to text_encoder bigru and bert"),
        ("bag", {"text_layers": 3}, "a bag of words has one hidden layer"),
        ("gru", {"text_heads": 2}, "only text_encoder transformer"),
        ("transformer", {"text_heads": 5}, "5 does not divide word_dim 12"),
        ("bag", {"lora": {}}, "no pretrained transformer pair"),
        ("bag", {"image_dropout": 1.0}, "less than 1"),
    ],
)
def test_options_that_would_do_nothing(kind, options, message, folder):
    with pytest.raises(ValueError, match=message):
        tiny_config(kind, folder, **options)
