"""Runs on the smallest sample: what they leave behind, what they refuse, and the options that change how they train."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor

from clip_itm.backbones.word_sections import TimmWordsBackbone
from clip_itm.data.images import read_image
from clip_itm.data.noise import CaptionNoise
from clip_itm.evaluation.spread import mean_cosine
from clip_itm.model import ItmModel
from clip_itm.processing import ItmProcessor
from clip_itm.recipe import load_recipe
from clip_itm.runs.setup import load_data, make_encoder, make_model, make_sampler
from clip_itm.runs.trackers import available_trackers
from clip_itm.runs.train import beaten_by_step_0, train
from clip_itm.training import feature_cache
from clip_itm.training.configuration import TrainingSection
from clip_itm.training.feature_cache import _key
from clip_itm.training.optimizer import parameter_groups
from clip_itm.training.schedule import step_lambda
from support.tiny import tiny_recipe
from support.trainers import pieces


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    recipe = tiny_recipe(tmp_path_factory.mktemp("finished"))
    return recipe, Path(recipe.output_dir), train(recipe)


def test_a_run_leaves_everything_behind(finished):
    recipe, folder, results = finished
    assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(results))
    assert load_recipe(folder) == recipe
    assert CaptionNoise.load(folder / "noise.npz").sha256 == results["noise"]["sha256"]
    for stage in ("zero_shot", "best", "last"):
        assert 0 <= results[stage]["all"]["metrics"]["rsum"] <= 600
        assert results[stage]["all"]["captions"] == 60
    assert (results["split"], results["steps"]) == ("test", 18)
    assert [entry["step"] for entry in results["val_history"]] == [0, 6, 12, 18]
    trained = [entry for entry in results["val_history"] if entry["step"] > 0]
    best = max(trained, key=lambda entry: entry["eval_rsum"])
    assert (results["best_step"], results["best_val_rsum"]) == (best["step"], best["eval_rsum"])
    checkpoints = {path.name for path in folder.glob("checkpoint-*")}
    assert checkpoints >= {"checkpoint-18", f"checkpoint-{best['step']}"}
    assert len(checkpoints) <= 2
    for checkpoint in checkpoints:
        assert load_recipe(folder / checkpoint) == recipe
        assert json.loads((folder / checkpoint / "provenance.json").read_text())["noise"] == results["noise"]
    card = (folder / "best" / "README.md").read_text()
    assert results["noise"]["sha256"] in card
    assert f"{results['best']['all']['metrics']['rsum']:.1f}" in card


def test_the_best_model_loads_anywhere_and_is_the_best_checkpoint(finished):
    _, folder, results = finished
    best = load_file(folder / "best" / "model.safetensors")
    checkpoint = load_file(folder / f"checkpoint-{results['best_step']}" / "model.safetensors")
    assert all(torch.equal(best[name], checkpoint[name]) for name in checkpoint)
    model = AutoModel.from_pretrained(folder / "best")
    assert isinstance(model, ItmModel)
    processor = AutoProcessor.from_pretrained(folder / "best")
    assert isinstance(processor, ItmProcessor)
    texts = model.encode_texts(**processor(text=["a red circle", "a blue square"], return_tensors="pt"))
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(2))
    assert model.head.similarity(texts, texts).shape == (2, 2)


def test_a_finished_run_is_not_repeated_and_another_recipe_is_refused(finished):
    recipe, folder, results = finished
    before = (folder / "results.json").stat().st_mtime_ns
    assert train(recipe) == json.loads(json.dumps(results))
    assert (folder / "results.json").stat().st_mtime_ns == before
    other = recipe.with_overrides("--training.learning_rate", "0.5", "--noise.ratio", "0")
    with pytest.raises(
        ValueError, match=r"another recipe \(different: noise.ratio, training.learning_rate\).*--overwrite"
    ):
        train(other)


def test_overwrite_starts_anew(tmp_path):
    recipe = tiny_recipe(tmp_path, training={"max_steps": 2})
    train(recipe)
    other = recipe.with_overrides("--training.learning_rate", "1e-4")
    assert train(other, overwrite=True)["steps"] == 2
    assert load_recipe(other.output_dir) == other


def test_overwrite_deletes_runs_only_and_only_when_the_new_one_can_start(tmp_path):
    precious = tmp_path / "run" / "photo.jpg"
    precious.parent.mkdir()
    precious.write_bytes(b"photo")
    with pytest.raises(ValueError, match="is not a run of clip-itm: --overwrite does not delete it"):
        train(tiny_recipe(tmp_path), overwrite=True)
    assert precious.exists()
    precious.unlink()
    recipe = tiny_recipe(tmp_path, training={"max_steps": 2})
    train(recipe)
    with pytest.raises(ValueError, match=r"training.batch_size 5000"):
        train(recipe.with_overrides("--training.batch_size", "5000"), overwrite=True)
    assert (Path(recipe.output_dir) / "results.json").exists()


@pytest.mark.parametrize("finished", [True, False])
def test_changed_data_do_not_go_on_silently(tmp_path, finished):
    recipe = tiny_recipe(tmp_path, training={"max_steps": 2})
    folder = Path(recipe.output_dir)
    train(recipe)
    if not finished:
        (folder / "results.json").unlink()
    began = json.loads((folder / "provenance.json").read_text())
    began["splits"]["val"]["sha256"] = began["noise"]["sha256"] = "0" * 64
    (folder / "provenance.json").write_text(json.dumps(began))
    (folder / "checksums.json").unlink()  # it would say that somebody has edited the file
    with pytest.raises(
        ValueError, match=r"the data have changed .*\(val 000000000000 -> \w{12}, noise 000000000000 -> "
    ):
        train(recipe)


@pytest.mark.parametrize(
    "training",
    [
        {"batches": "unique"},
        {"batches": "grouped", "captions_per_image": 3},
        {"gradient_accumulation_steps": 3, "max_grad_norm": 1.0},
        {"precision": "bf16"},
        {"activation_checkpointing": True},
        {"layer_decay": 0.5, "decay_all": False, "schedule": "constant"},
        {"schedule": "per_epoch_plateau"},
        {"evaluate_every": 2, "save_every": 4},
        {"trackers": ["tensorboard"]},
    ],
    ids=lambda training: next(iter(training)) + "=" + str(next(iter(training.values()))),
)
def test_every_way_of_training_runs_and_moves_the_weights(tmp_path, training):
    recipe = tiny_recipe(tmp_path, training={"max_steps": 5, **training})
    results = train(recipe)
    assert results["steps"] == 5
    assert results["val_history"][-1]["step"] == 5
    assert (Path(recipe.output_dir) / "checkpoint-5").is_dir()
    fresh, _ = make_model(recipe, load_data(recipe).splits)
    trained = load_file(Path(recipe.output_dir) / "checkpoint-5" / "model.safetensors")
    moved = [name for name, value in fresh.state_dict().items() if not torch.equal(value, trained[name])]
    assert len(moved) == len(trained)
    if "trackers" in training:
        assert list(Path(recipe.output_dir).rglob("events.out.tfevents*"))


def test_frozen_towers_are_encoded_once_and_stay(tmp_path):
    recipe = tiny_recipe(tmp_path, backbone={"freeze_image": True})
    data, model, encoder, trainer = pieces(recipe)
    kept = sorted(path.name for path in (tmp_path / "cache" / "features").glob("*.npy"))
    assert len(kept) == 1  # the training photos; the others come when they are needed
    assert "image_features" in trainer.train_dataset.__getitems__([0, 1])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with_features = encoder.encode(data.val)
    encoder.frozen_images = False
    without = encoder.encode(data.val)
    torch.testing.assert_close(with_features.images, without.images)
    encoder.frozen_images = True
    trainer.train()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert not any(name.startswith("backbone.model.visual") for name in changed)
    assert "backbone.model.text_projection" in changed


def test_features_are_named_by_what_makes_them():
    """An option of the other tower, or of what trains behind it, is none of theirs."""

    def key(of_the_other, **options):
        section = TimmWordsBackbone(**options)
        return _key(SimpleNamespace(backbone=SimpleNamespace(config=section)), [], of_the_other, [], "inputs")

    assert key("text_") == key("text_", text_hidden=16) == key("text_", text_encoder="bert", text_model="a")
    assert key("text_") == key("text_", image_dropout=0.5)
    assert len({key("text_", **options) for options in ({}, {"image_grid": 3}, {"image_model": "resnet18"})}) == 3
    assert key("image_", text_encoder="bert") == key("image_", text_encoder="bert", image_model="resnet18")
    assert key("image_", text_encoder="bert") != key("image_", text_encoder="bert", text_model="a")


def test_tokens_of_frozen_towers_are_kept_for_heads_that_read_them(tmp_path, monkeypatch):
    monkeypatch.setattr("clip_itm.training.feature_cache.IMAGES_AT_ONCE", 7)
    head = {"kind": "triplet", "similarity": {"kind": "scan", "max_words": 20, "token_dim": 16}}
    recipe = tiny_recipe(tmp_path, backbone={"freeze_image": True}, head=head)
    data, model, encoder, trainer = pieces(recipe)
    batch = trainer.train_dataset.__getitems__([0, 1, 7])
    photos = [int(data.train.pairs.image[pair]) for pair in (0, 7)]
    pixels = [read_image(data.train.rows[photo]["image"]) for photo in photos]
    pixels = trainer.processor(images=pixels, return_tensors="pt")["pixel_values"]
    live = model.eval().backbone.image_trunk(pixels)
    assert batch["image_tokens"].dtype == torch.float32
    torch.testing.assert_close(batch["image_features"], live.pooled)
    torch.testing.assert_close(batch["image_tokens"], live.tokens, rtol=1e-3, atol=1e-3)  # kept in half precision
    with_features = encoder.encode(data.val)
    encoder.frozen_images = False
    torch.testing.assert_close(with_features.images, encoder.encode(data.val).images, rtol=1e-2, atol=2e-3)
    encoder.frozen_images = True
    trainer.train()
    assert trainer.state.best_metric > 0


def test_features_of_a_killed_run_are_made_from_the_last_whole_part_on(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache, "IMAGES_AT_ONCE", 15)
    data, _, encoder, _ = pieces(tiny_recipe(tmp_path, backbone={"freeze_image": True}))
    whole = np.array(encoder.image_features(data.train)["image_features"])
    encode, parts = feature_cache.encode_images, []

    def killed(tower, rows, **settings):
        parts.append(len(rows))
        if len(parts) == 2:
            raise KeyboardInterrupt
        return encode(tower, rows, **settings)

    monkeypatch.setattr(feature_cache, "encode_images", killed)
    other = replace(encoder, cache_folder=tmp_path / "other")
    with pytest.raises(KeyboardInterrupt):
        other.image_features(data.train)
    again = other.image_features(data.train)["image_features"]
    assert parts == [15, 15, 15, 10], "the first part was kept"
    np.testing.assert_array_equal(again, whole)
    assert len(list((tmp_path / "other").glob("*.npy"))) == 1


def test_features_are_not_kept_where_photos_are_cropped_at_random(tmp_path):
    recipe = tiny_recipe(tmp_path, backbone={"freeze_image": True}, data={"random_crop": 0.5})
    trainer = pieces(recipe)[-1]
    assert "pixel_values" in trainer.train_dataset.__getitems__([0, 1])


def test_parameter_groups_cover_everything_once_with_rates_falling_to_the_input(tmp_path):
    recipe = tiny_recipe(tmp_path)
    model, _ = make_model(recipe, load_data(recipe).splits)
    section = TrainingSection(learning_rate=1.0, layer_decay=0.5, weight_decay=0.2, decay_all=False)
    groups = parameter_groups(model, section)
    listed = [parameter for group in groups for parameter in group["params"]]
    assert len(listed) == len({id(parameter) for parameter in listed})
    assert {id(parameter) for parameter in listed} == {id(parameter) for parameter in model.parameters()}
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    decays = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    names = dict(model.named_parameters())
    rate = {name: rates[id(parameter)] for name, parameter in names.items()}
    assert rate["head.logit_scale"] == rate["backbone.model.visual.proj"] == 1.0
    assert rate["backbone.model.visual.transformer.resblocks.1.mlp.c_fc.weight"] == 0.5
    assert rate["backbone.model.visual.transformer.resblocks.0.mlp.c_fc.weight"] == 0.25
    assert rate["backbone.model.visual.conv1.weight"] == 0.125
    assert rate["backbone.model.token_embedding.weight"] == 0.25  # one text block between it and the top
    assert decays[id(names["head.logit_scale"])] == 0
    assert decays[id(names["backbone.model.visual.conv1.weight"])] == 0.2
    assert groups[0]["lr"] == 1.0  # the rate that is logged


def test_rate_multipliers_go_by_the_longest_beginning_of_a_name(tmp_path):
    recipe = tiny_recipe(tmp_path)
    model, _ = make_model(recipe, load_data(recipe).splits)
    own = {"backbone.model.visual": 0.1, "backbone.model.visual.proj": 3.0, "head": 10.0}
    section = TrainingSection(learning_rate=1.0, layer_decay=0.5, lr_multipliers=own)
    groups = parameter_groups(model, section)
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    rate = {name: rates[id(parameter)] for name, parameter in model.named_parameters()}
    assert rate["head.logit_scale"] == groups[0]["lr"] == 10.0
    assert rate["backbone.model.visual.proj"] == 3.0
    assert rate["backbone.model.visual.conv1.weight"] == pytest.approx(0.1 * 0.125)
    assert rate["backbone.model.text_projection"] == 1.0
    with pytest.raises(ValueError, match=r"no trained parameter begins with 'backbone\.image'"):
        parameter_groups(model, TrainingSection(lr_multipliers={"backbone.image": 2.0}))


def test_the_rate_falls_at_given_epochs():
    assert [round(step_lambda(epoch, 15, (2, 3)), 6) for epoch in range(5)] == [1, 1, 0.1, 0.01, 0.01]
    assert [step_lambda(epoch, 2) for epoch in range(4)] == [1, 1, 0.1, 0.1]


def test_nothing_left_to_train_is_an_error(tmp_path):
    recipe = tiny_recipe(tmp_path, backbone={"freeze_image": True, "freeze_text": True})
    model, _ = make_model(recipe, load_data(recipe).splits)
    for parameter in model.head.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match="leave nothing to train"):
        parameter_groups(model, recipe.training)


@pytest.mark.filterwarnings("ignore:the (loss|embeddings)")  # the same ones again, later in the run
def test_loud_warnings(tmp_path):
    recipe = tiny_recipe(tmp_path, training={"max_steps": 2, "log_every": 1})
    _, model, encoder, trainer = pieces(recipe)
    embeddings = encoder.encode(load_data(recipe).val)
    trainer.encode_val = lambda: replace(embeddings, texts=embeddings.texts[:1].expand(60, -1))
    with pytest.warns(UserWarning, match="the embeddings of texts have collapsed at step 0"):
        trainer.evaluate()
    with torch.no_grad():
        model.head.logit_scale.fill_(math.nan)
    with pytest.raises(ValueError, match="the loss is nan and the norm of its gradient nan at step 1: training stops"):
        trainer.train()
    trainer.encode_val = lambda: replace(embeddings, texts=embeddings.texts * math.nan)
    with pytest.raises(ValueError, match="the embeddings are not finite at step 0: training stops"):
        trainer.evaluate()


def test_mean_cosine_against_all_pairs():
    vectors = torch.nn.functional.normalize(torch.randn(7, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    cosines = vectors @ vectors.T
    expected = (cosines.sum() - cosines.trace()) / (7 * 6)
    assert mean_cosine(vectors) == pytest.approx(float(expected), abs=1e-6)
    assert mean_cosine(vectors[:1]) == 0


def test_batches_are_divided_among_processes_or_refused(tmp_path):
    recipe = tiny_recipe(tmp_path, training={"batch_size": 500})
    with pytest.raises(ValueError, match=r"training.batch_size 500 is larger than the training split \(200 pairs\)"):
        make_sampler(recipe, load_data(recipe).train)


def test_a_tracker_that_is_not_installed_is_told_before_anything_else(monkeypatch):
    monkeypatch.setattr("clip_itm.runs.trackers.find_spec", lambda name: None)
    assert available_trackers(["auto"]) == []
    with pytest.raises(ValueError, match=r"training.trackers: wandb is not installed"):
        available_trackers(["wandb"])


def test_kept_features_belong_to_one_architecture(tmp_path):
    """Equal weights under another activation are another tower."""
    for activation in (False, True):
        recipe = tiny_recipe(tmp_path, backbone={"freeze_image": True})
        architecture = json.loads((tmp_path / "tiny_clip.json").read_text()) | {"quick_gelu": activation}
        (tmp_path / "tiny_clip.json").write_text(json.dumps(architecture))
        data = load_data(recipe)
        encoder = make_encoder(recipe, *make_model(recipe, data.splits))
        kept = encoder.encode(data.val).images
        encoder.frozen_images = False
        torch.testing.assert_close(kept, encoder.encode(data.val).images)
    assert len(list((tmp_path / "cache" / "features").glob("*.npy"))) == 2


def test_saving_more_often_than_evaluating_keeps_every_evaluation(tmp_path):
    recipe = tiny_recipe(tmp_path, training={"epochs": 1, "save_every": 2})
    results = train(recipe)
    assert [entry["step"] for entry in results["val_history"]] == [0, 6]
    folder = Path(recipe.output_dir)
    state = json.loads((folder / "checkpoint-6" / "trainer_state.json").read_text())
    assert state["best_global_step"] == 6  # it was evaluated before it was saved
    (folder / "results.json").unlink()
    assert train(recipe)["best"] == results["best"]


def test_a_warmup_longer_than_the_run_is_told(tmp_path):
    recipe = tiny_recipe(tmp_path, training={"warmup": 500, "max_steps": 2})
    with pytest.warns(UserWarning, match=r"training.warmup \(500 steps\) is not shorter than the run \(2 steps\)"):
        train(recipe)


def test_a_run_that_only_got_worse_says_so():
    results = {"val_history": [{"step": 0, "eval_rsum": 27.8}, {"step": 2, "eval_rsum": 27.6}], "best_val_rsum": 27.6}
    assert beaten_by_step_0(results).startswith(
        "No checkpoint beats the model before training on val (rsum 27.6 against"
    )
    assert beaten_by_step_0(results | {"best_val_rsum": 28.0}) is None


def test_what_is_frozen_is_frozen_again_when_a_model_is_loaded(tmp_path):
    recipe = tiny_recipe(tmp_path, backbone={"freeze_image": True, "freeze_text_blocks": 1})
    data = load_data(recipe)
    model, _ = make_model(recipe, data.splits)
    model.save_pretrained(tmp_path / "model")
    loaded = ItmModel.from_pretrained(tmp_path / "model")
    trains = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert {name: parameter.requires_grad for name, parameter in loaded.named_parameters()} == trains
    assert set(trains.values()) == {True, False}
    assert make_encoder(recipe, loaded, None).frozen_images
