"""A pretrained sentence encoder as the text tower of timm-words: what it pools, and what trains behind it."""

import copy

import pytest
import torch
from torch import Tensor, nn

from clip_itm.backbones.build import freeze
from clip_itm.backbones.features import Features
from support.tiny_backbones import CAPTIONS, batch_of, tiny_backbone


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tiny")


def mean_pooling(states: Tensor, attention_mask: Tensor) -> Tensor:
    """sentence-transformers' Pooling with pooling_mode mean: sum of states at the mask / number of ones in it."""
    mask = attention_mask.unsqueeze(-1).expand(states.size()).to(states.dtype)
    return (states * mask).sum(1) / mask.sum(1).clamp(min=1e-9)


def test_pooled_is_what_sentence_transformers_pools(folder):
    """Over every token of the mask, start and end tokens among them, and no padding."""
    backbone, processor = tiny_backbone("sentence", folder)
    _, input_ids, attention_mask = batch_of(processor)
    assert (attention_mask.sum(dim=1) < attention_mask.shape[1]).any()  # there is padding
    backbone.double().eval()
    states = backbone.text_tower.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
    pooled = backbone.text_trunk(input_ids, attention_mask).pooled
    torch.testing.assert_close(pooled, mean_pooling(states, attention_mask), rtol=1e-12, atol=1e-12)
    words = backbone.words(input_ids, attention_mask)
    assert not torch.allclose(pooled, mean_pooling(states, words), atol=1e-3)  # it would not be the same


def test_first_is_the_first_token(folder):
    backbone, processor = tiny_backbone("sentence", folder, text_pooling="first")
    _, input_ids, attention_mask = batch_of(processor)
    backbone.eval()
    states = backbone.text_tower.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
    assert torch.equal(backbone.text_trunk(input_ids, attention_mask).pooled, states[:, 0])


def test_the_neck_is_an_mlp_with_dropout_on_features_and_in_between(folder):
    backbone, _ = tiny_backbone("sentence", folder, text_dropout=0.5, hidden_dropout=0.5, text_hidden=64)
    layers = [type(layer) for layer in backbone.text_mlp]
    assert layers == [nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]
    first, _, dropout, last = backbone.text_mlp
    assert (first.in_features, first.out_features, last.out_features) == (32, 64, 16)
    assert dropout.p == 0.5
    assert backbone.text_tower.dropout.p == 0  # nothing random in what is kept
    features = Features(torch.randn(5, 32))
    expected = features.pooled @ first.weight.T + first.bias
    expected = expected.clamp(min=0) @ last.weight.T + last.bias
    torch.testing.assert_close(backbone.eval().text_neck(features).pooled, expected)
    assert not torch.allclose(backbone.train().text_neck(features).pooled, expected, atol=1e-3)


def test_a_frozen_tower_gives_the_same_in_training(folder):
    """What is kept on disk is what the tower would give, whatever is dropped behind it."""
    backbone, processor = tiny_backbone("sentence", folder, freeze_text=True, text_dropout=0.3, hidden_dropout=0.3)
    freeze(backbone, backbone.config)
    _, input_ids, attention_mask = batch_of(processor)
    kept = backbone.eval().text_trunk(input_ids, attention_mask).pooled
    assert torch.equal(backbone.train().text_trunk(input_ids, attention_mask).pooled, kept)
    trained = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    assert {name for name in trained if name.startswith("text")} == {
        f"text_mlp.{layer}.{name}" for layer in (0, 3) for name in ("weight", "bias")
    }


def test_tokens_are_the_states_of_the_encoder(folder):
    backbone, processor = tiny_backbone("sentence", folder, freeze_text=True)
    freeze(backbone, backbone.config)
    backbone.output_tokens = True
    _, input_ids, attention_mask = batch_of(processor)
    features = backbone.eval().text_trunk(input_ids, attention_mask)
    states = backbone.text_tower.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
    assert torch.equal(features.tokens, states * attention_mask[..., None])
    assert backbone.text_neck(features).tokens.shape == (len(CAPTIONS), input_ids.shape[1], 32)
    assert backbone.widths.text_tokens == 32


def test_it_can_be_thawed_with_the_mlp_that_was_trained_behind_it(folder):
    """Frozen or not, the weights are the same ones under the same names."""
    frozen, processor = tiny_backbone("sentence", folder, freeze_text=True)
    thawed, _ = tiny_backbone("sentence", folder, seed=1)
    thawed.load_state_dict(copy.deepcopy(frozen.state_dict()))
    _, input_ids, attention_mask = batch_of(processor)
    one, other = (
        towers.eval().text_neck(towers.text_trunk(input_ids, attention_mask)).pooled for towers in (frozen, thawed)
    )
    assert torch.equal(one, other)


def test_captions_are_cut_to_what_the_encoder_has_positions_for(folder):
    backbone, processor = tiny_backbone("sentence", folder)
    assert backbone.config.max_words > backbone.text_tower.bert.config.max_position_embeddings == processor.max_length
    words = processor(text=["a dog " * 50])
    assert words["input_ids"].shape == (1, 24)
    assert backbone.eval().text_trunk(words["input_ids"], words["attention_mask"]).pooled.isfinite().all()
    assert tiny_backbone("sentence", folder, max_words=10)[1].max_length == 10
