"""Runs with the gradient cache: the steps of runs without it, a resumed run to the bit, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from clip_itm.backbones.masked_batch_norm import MaskedBatchNorm
from clip_itm.data.sampler import PairBatchSampler
from clip_itm.runs.batch_checks import require_chunks_for_batch_norm
from clip_itm.runs.build import make_trainer
from clip_itm.runs.setup import make_encoder, make_model, make_sampler, prepare
from clip_itm.runs.train import train
from clip_itm.training.configuration import TrainingSection
from support.distributed.run import SECTIONS, pixels_in_double
from support.killed_runs import HEADS, STEPS, assert_same_end, interrupt_at
from support.tiny import tiny_recipe

RUN = {"epochs": 2, "precision": "fp32", "max_grad_norm": 0.5, "ema": 0.5}
WITHOUT = {"batch_size": 40}
WITH = {
    "in chunks": {"batch_size": 40, "cache_chunk": 7},
    "accumulated": {"batch_size": 20, "gradient_accumulation_steps": 2, "accumulate": "cached"},
    "recomputed": {"batch_size": 40, "cache_chunk": 12, "activation_checkpointing": True},
    "two batches a step": {"batch_size": 20, "gradient_accumulation_steps": 2, "cache_chunk": 6},
}
TWIN = {"two batches a step": {"batch_size": 20, "gradient_accumulation_steps": 2}}


def weights_after(folder: Path, method: str, training: dict, monkeypatch) -> dict[str, torch.Tensor]:
    """In float64, without dropout."""
    folder.mkdir()
    head = SECTIONS[method].get("head", {"kind": "clip"})
    recipe = tiny_recipe(folder, head=head, backbone={"word_dropout": 0.0}, training=RUN | training)
    with monkeypatch.context() as patch:
        pixels_in_double(patch.setattr)
        prepared = prepare(recipe)
        model, processor = make_model(recipe, prepared.data.splits)
        trainer = make_trainer(recipe, *prepared, make_encoder(recipe, model, processor), resuming=False)
        model.double()
        trainer.train()
    assert len(trainer.sampler) == 200 // recipe.training.contrastive_batch
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["clip", "npc", "aahr", "crossfit"])
def test_a_run_with_the_cache_takes_the_steps_of_one_without(tmp_path, method, monkeypatch):
    if method == "aahr":
        monkeypatch.setattr("clip_itm.methods.aahr.triplet.draw_negatives", lambda weights: weights.argmax(dim=1))
    first = weights_after(tmp_path / "first", method, WITHOUT, monkeypatch)
    for name, training in WITH.items():
        expected = first
        if name in TWIN:
            if method != "clip":
                continue
            expected = weights_after(tmp_path / f"twin of {name}", method, TWIN[name], monkeypatch)
        found = weights_after(tmp_path / name, method, training, monkeypatch)
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-7, atol=1e-9, msg=f"{name}: {key}")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["clip", "npc"])
def test_an_interrupted_run_with_dropout_goes_on_to_the_bit(tmp_path, method):
    recipes = []
    for name in ("whole", "interrupted"):
        (tmp_path / name).mkdir()
        recipes.append(
            tiny_recipe(
                tmp_path / name,
                head=HEADS[method],
                backbone={"word_dropout": 0.2, "image_dropout": 0.2},
                training={"epochs": 3, "save_every": 2, "cache_chunk": 9, "ema": 0.5},
            )
        )
    train(recipes[0])
    interrupt_at(STEPS + 2, recipes[1])
    train(recipes[1])
    whole, interrupted = (Path(recipe.output_dir) for recipe in recipes)
    assert_same_end(interrupted, whole, method)


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"batch_size": 32, "cache_chunk": 32}, r"cache_chunk 32 does nothing with batches of 32 pairs \(batch_size\)"),
        ({"batch_size": 32, "cache_chunk": 64}, "write a smaller one, or leave it out"),
        (
            {"batch_size": 8, "gradient_accumulation_steps": 4, "accumulate": "cached", "cache_chunk": 32},
            r"batches of 32 pairs \(batch_size x gradient_accumulation_steps\)",
        ),
        ({"accumulate": "cached"}, "accumulate: cached makes one batch of gradient_accumulation_steps batches"),
        ({"cache_chunk": 0}, "cache_chunk"),
    ],
)
def test_keys_that_do_nothing_are_refused(training, message):
    with pytest.raises(ValidationError, match=message):
        TrainingSection(**training)


def test_what_the_keys_mean():
    plain = TrainingSection(batch_size=32, gradient_accumulation_steps=4)
    assert (plain.contrastive_batch, plain.batches_per_step, plain.chunk(2)) == (32, 4, None)
    cached = TrainingSection(batch_size=32, gradient_accumulation_steps=4, accumulate="cached")
    assert (cached.contrastive_batch, cached.batches_per_step, cached.chunk(1), cached.chunk(4)) == (128, 1, 32, 8)
    assert cached.model_copy(update={"cache_chunk": 5}).chunk(4) == 5
    assert TrainingSection(batch_size=32, cache_chunk=8).chunk(4) == 8


def test_a_recipe_has_its_hash_unless_it_asks_for_the_cache(tmp_path):
    recipe = tiny_recipe(tmp_path)
    assert recipe.with_overrides("--training.cache_chunk", "8").sha256 != recipe.sha256
    assert recipe.with_overrides("--training.accumulate", "separate").sha256 == recipe.sha256
    assert "cache_chunk: null" in recipe.to_yaml()


def test_a_batch_of_several_batches_needs_as_many_pairs(tmp_path):
    training = {"batch_size": 32, "gradient_accumulation_steps": 8, "accumulate": "cached"}
    recipe = tiny_recipe(tmp_path, training=training)
    with pytest.raises(ValueError, match=r"training split.*gradient_accumulation_steps 8 times as many"):
        prepare(recipe)
    recipe = tiny_recipe(tmp_path, training=training | {"gradient_accumulation_steps": 2})
    sampler = make_sampler(recipe, prepare(recipe).data.train)
    assert [len(batch) for batch in sampler] == [64] * 3


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(4), nn.BatchNorm2d(4), MaskedBatchNorm(4)])
def test_batch_norm_that_trains_is_refused_before_training(tmp_path, norm):
    recipe = tiny_recipe(tmp_path, training={"cache_chunk": 8})
    sampler = PairBatchSampler(np.arange(200), batch_size=32, mode="random")
    model = nn.ModuleDict({"backbone": nn.Sequential(nn.Linear(4, 4), norm)}).eval()
    with pytest.raises(ValueError, match=r"training\.cache_chunk: backbone\.1 is batch norm that trains"):
        require_chunks_for_batch_norm(recipe, model, sampler)
    assert not model.training
    several = tiny_recipe(tmp_path, training={"accumulate": "cached", "gradient_accumulation_steps": 2})
    with pytest.raises(ValueError, match=r"training\.accumulate: cached: backbone\.1"):
        require_chunks_for_batch_norm(several, model, PairBatchSampler(np.arange(200), batch_size=64, mode="random"))
    in_one = PairBatchSampler(np.arange(200), batch_size=32, mode="random", world_size=4)
    require_chunks_for_batch_norm(recipe, model, in_one)  # the part of a process is one chunk
    require_chunks_for_batch_norm(tiny_recipe(tmp_path), model, sampler)
    behind = nn.ModuleDict({"head": nn.Sequential(nn.BatchNorm1d(4))})
    require_chunks_for_batch_norm(recipe, behind, sampler)


def test_a_recipe_with_trained_batch_norm_ends_in_a_sentence(tmp_path):
    words = {"kind": "timm-words", "image_model": "test_efficientnet", "image_pretrained": False, "embed_dim": 16}
    words |= {"text_encoder": "bag", "word_dim": 8, "min_word_count": 1, "image_size": 32}
    recipe = tiny_recipe(tmp_path, training={"cache_chunk": 8}).model_dump(mode="json")
    from clip_itm.recipe import parse_recipe

    with pytest.raises(ValueError, match=r"is batch norm that trains.*backbone\.freeze_image"):
        train(parse_recipe(recipe | {"backbone": words}, "recipe"))
