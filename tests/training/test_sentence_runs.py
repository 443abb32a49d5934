"""Runs behind a frozen sentence encoder: its features are kept, and give what the encoder would give."""

from pathlib import Path

import numpy as np
import pytest
import torch

from clip_itm.model import ItmModel
from clip_itm.runs.setup import load_data, make_encoder, make_model
from clip_itm.runs.train import train
from support.tiny import HEADS, tiny_recipe
from support.tiny_backbones import tiny_config

FROZEN = {"freeze_image": True, "freeze_text": True, "text_dropout": 0.2, "hidden_dropout": 0.3}


def sentence_recipe(folder: Path, head: dict | None = None, **options):
    backbone = tiny_config("sentence", folder, **options).model_dump(mode="json", exclude_unset=True)
    recipe = tiny_recipe(folder, head=head or {"kind": "clip"})
    content = recipe.model_dump(mode="json") | {"backbone": {"kind": "timm-words", **backbone}}
    return type(recipe).model_validate(content)


def encoder_of(recipe):
    data = load_data(recipe)
    return make_encoder(recipe, *make_model(recipe, data.splits)), data


@pytest.mark.filterwarnings("ignore:the embeddings of", "ignore:all. equal scores")
@pytest.mark.parametrize("head", [{"kind": "clip"}, {"kind": "npc", "warmup_epochs": 1, "rho": 0.5}, {"kind": "crcl"}])
def test_a_run_keeps_the_features_of_both_towers_and_trains_what_is_behind_them(tmp_path, head):
    recipe = sentence_recipe(tmp_path, head, **FROZEN)
    start = make_model(recipe, load_data(recipe).splits)[0].state_dict()
    results = train(recipe)
    assert results["steps"] == 18
    kept = [np.load(path) for path in (tmp_path / "cache" / "features").glob("captions-*.npy")]
    assert sorted(map(np.shape, kept)) == [(60, 32), (60, 32), (200, 32)]  # val, test, train
    best = ItmModel.from_pretrained(Path(recipe.output_dir) / "best").state_dict()
    moved = {name for name in start if not torch.equal(best[name], start[name])}
    assert {name.rsplit(".", 1)[0] for name in moved if name.startswith("backbone.")} == {
        "backbone.image_projection",
        "backbone.text_mlp.0",
        "backbone.text_mlp.3",
    }


def test_kept_features_are_those_of_the_encoder(tmp_path):
    encoder, data = encoder_of(sentence_recipe(tmp_path, **FROZEN))
    assert encoder.text_features(data.val).shape == (60, 32)
    kept = encoder.encode(data.val).texts
    encoder.frozen_texts = False
    torch.testing.assert_close(kept, encoder.encode(data.val).texts, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("head", "options"),
    [
        ({"kind": "clip"}, {}),
        ({"kind": "clip"}, {"freeze_text_blocks": 2, "word_dropout": 0.2}),  # frozen as a whole, and words are hidden
        (HEADS["dive"], {"freeze_text": True}),  # it reads the states of words
    ],
    ids=["trained", "hidden words", "words are read"],
)
def test_features_are_kept_only_where_they_stand_for_the_encoder(tmp_path, head, options):
    encoder, data = encoder_of(sentence_recipe(tmp_path, head, **options))
    assert encoder.frozen_texts == bool(options)
    assert encoder.text_features(data.val) is None
    assert not (tmp_path / "cache" / "features").exists()
