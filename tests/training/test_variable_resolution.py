"""Photos of variable resolution (SigLIP 2, NaFlex) through whole runs: training, kept features, memory, index."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clip_itm import load_model
from clip_itm.cli import main
from clip_itm.data.images import read_image
from support.tiny import tiny_recipe
from support.tiny_backbones import tiny_config
from support.trainers import pieces

SCAN = {"kind": "triplet", "similarity": {"kind": "scan", "max_words": 20, "token_dim": 16}}


def recipe_of(folder, **sections):
    folder.mkdir(exist_ok=True)
    towers = {"kind": "transformers", "model": tiny_config("siglip2", folder).model}
    sections["backbone"] = towers | sections.get("backbone", {})
    return tiny_recipe(folder, training={"epochs": 1}, **sections)


@pytest.mark.slow
def test_a_run_its_model_and_its_index(tmp_path, capsys):
    recipe = recipe_of(tmp_path, backbone={"max_num_patches": 20})
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    run, gallery, found = (str(tmp_path / name) for name in ("run", "gallery", "found.json"))
    assert main(["train", str(tmp_path / "recipe.yaml")]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    assert main(["evaluate", run, "--json", found]) == 0
    assert json.loads(Path(found).read_text(encoding="utf-8"))["all"]["metrics"] == results["best"]["all"]["metrics"]
    assert load_model(tmp_path / "run").processor.image_processor.max_num_patches == 20
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, (width, height) in enumerate([(40, 40), (120, 20), (9, 90), (64, 48)]):
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / f"{number}.png")
    assert main(["index", run, str(photos), "--out", gallery, "--batch-size", "3"]) == 0
    assert main(["search", run, gallery, str(photos / "2.png"), "--top-k", "1", "--json", found]) == 0
    hit = json.loads(Path(found).read_text(encoding="utf-8"))[0]["results"][0]
    assert hit["id"] == "2.png"
    assert hit["score"] == pytest.approx(1, abs=1e-5), "alone as among the others"
    assert main(["audit", "--run", run, "--out", str(tmp_path / "audit")]) == 0


@pytest.mark.parametrize("head", [{"kind": "npc", "rho": 0.5}, {"kind": "osa", "weights": "released"}])
def test_methods_with_batches_of_their_own(head, tmp_path):
    """NPC slices its memory out of one batch; OSA can take its boundary from images of noise."""
    *_, trainer = pieces(recipe_of(tmp_path, head=head))
    trainer.train()
    assert trainer.state.global_step == 6


def test_kept_features_know_their_mask(tmp_path, monkeypatch):
    monkeypatch.setattr("clip_itm.training.feature_cache.IMAGES_AT_ONCE", 7)
    data, model, encoder, trainer = pieces(recipe_of(tmp_path, backbone={"freeze_image": True}, head=SCAN))
    batch = trainer.train_dataset.__getitems__([0, 1, 7])
    rows = [int(data.train.pairs.image[pair]) for pair in (0, 7)]
    photos = trainer.processor(images=[read_image(data.train.rows[row]["image"]) for row in rows])
    live = model.eval().backbone.image_trunk(**photos)
    assert torch.equal(batch["image_mask"], live.mask)
    assert not live.mask.all()
    torch.testing.assert_close(batch["image_features"], live.pooled)
    torch.testing.assert_close(batch["image_tokens"], live.tokens, rtol=1e-3, atol=1e-3)  # kept in half precision
    with_features = encoder.encode(data.val)
    encoder.frozen_images = False
    torch.testing.assert_close(with_features.images, encoder.encode(data.val).images, rtol=1e-2, atol=2e-3)
    encoder.frozen_images = True
    trainer.train()
    assert trainer.state.best_metric > 0


def test_the_gradient_cache_cuts_masks_and_shapes_too(tmp_path):
    """Weights behind a whole epoch, with chunks of 5 and without."""
    ends = {}
    for chunk in (None, 5):
        torch.manual_seed(0)
        recipe = recipe_of(tmp_path / str(chunk))
        training = recipe.training.model_copy(update={"cache_chunk": chunk, "max_grad_norm": 0.0})
        *_, trainer = pieces(recipe.model_copy(update={"training": training}))
        trainer.train()
        ends[chunk] = trainer.model.state_dict()
    for name, value in ends[None].items():
        torch.testing.assert_close(ends[5][name], value, rtol=1e-3, atol=1e-5, msg=name)
