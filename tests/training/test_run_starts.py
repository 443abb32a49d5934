"""What is checked before a run begins: arguments, the launcher's environment, batches and seeds."""

import os
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from torch import nn

import clip_itm
from clip_itm.cli import main
from clip_itm.data.sampler import PairBatchSampler
from clip_itm.distributed import OTHER_LAUNCHES, agree
from clip_itm.recipe import Recipe, RecipeError, parse_recipe
from clip_itm.runs.batch_checks import require_negatives, require_rows_for_batch_norm
from clip_itm.runs.launch import recipe_decides
from support.bad_input.cases import photos
from support.bad_input.cases import recipe as write_recipe
from support.tiny import tiny_recipe


@pytest.mark.parametrize(
    "call",
    [
        lambda recipe: clip_itm.train(recipe, recipe.data),
        lambda recipe: clip_itm.train(recipe, True),
        lambda recipe: clip_itm.train(recipe, overwrite="no"),
        lambda recipe: clip_itm.train(recipe, overwrite=None),
        lambda recipe: clip_itm.train("recipe.yaml"),
        lambda recipe: clip_itm.train(recipe.model_dump()),
        lambda recipe: clip_itm.train(Path(recipe.output_dir)),
    ],
)
def test_train_takes_a_recipe_and_says_so(tmp_path, call):
    recipe = tiny_recipe(tmp_path)
    with pytest.raises(TypeError, match=r"expected train\(recipe\) or train\(recipe, overwrite=True\) with a Recipe"):
        call(recipe)
    assert not Path(recipe.output_dir).exists()


def test_data_are_required():
    with pytest.raises(ValidationError, match="data\n  Field required"):
        Recipe(backbone={"kind": "open_clip"})
    with pytest.raises(RecipeError, match=r"r.yaml: data: this section is required; .* such as data: {source: folder"):
        parse_recipe({"backbone": {"kind": "open_clip"}}, "r.yaml")


# The launcher's environment


@pytest.mark.parametrize(
    ("name", "value", "key"),
    [
        ("ACCELERATE_MIXED_PRECISION", "bf16", "training.precision fp32"),
        ("ACCELERATE_MIXED_PRECISION", "fp16", "training.precision fp32"),
        ("ACCELERATE_MIXED_PRECISION", "FP8", "training.precision fp32"),
        ("ACCELERATE_FP8_BACKEND", "te", "training.precision fp32"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "training.gradient_accumulation_steps 2"),
        ("ACCELERATE_GRADIENT_CLIPPING", "1.0", "training.max_grad_norm 0.5"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "training.compile False"),
    ],
)
def test_the_recipe_decides_not_the_launcher(tmp_path, monkeypatch, name, value, key):
    training = {"max_steps": 2, "precision": "fp32", "gradient_accumulation_steps": 2, "max_grad_norm": 0.5}
    recipe = tiny_recipe(tmp_path, training=training)
    monkeypatch.setenv(name, value)
    with pytest.warns(UserWarning, match=f"{name}={value} is left aside: {key}"), recipe_decides(recipe):
        assert name not in os.environ
    assert os.environ[name] == value


def test_what_says_the_same_is_no_reason_to_warn(tmp_path, monkeypatch, recwarn):
    for name, value in (
        ("ACCELERATE_MIXED_PRECISION", "no"),
        ("ACCELERATE_DYNAMO_BACKEND", "NO"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1"),
    ):
        monkeypatch.setenv(name, value)
    with recipe_decides(tiny_recipe(tmp_path)):
        pass
    assert [str(warning.message) for warning in recwarn if "left aside" in str(warning.message)] == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*left aside")
def test_precision_of_a_run_is_that_of_its_recipe_whatever_ran_before(tmp_path, monkeypatch):
    """Compared by the weights: bf16 and fp32 differ, and neither the environment nor an earlier run changes either."""
    weights = {}
    for number, (precision, environment) in enumerate(
        [("fp32", "no"), ("bf16", "no"), ("fp32", "bf16"), ("bf16", "fp16")]
    ):
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", environment)
        recipe = tiny_recipe(tmp_path, training={"max_steps": 2, "precision": precision})
        recipe = recipe.with_overrides("--output_dir", str(tmp_path / f"run-{number}"))
        clip_itm.train(recipe)
        found = (tmp_path / f"run-{number}" / "best" / "model.safetensors").read_bytes()
        assert weights.setdefault(precision, found) == found, (precision, environment)
    assert weights["fp32"] != weights["bf16"]


@pytest.mark.parametrize("name", OTHER_LAUNCHES)
def test_launches_that_are_not_plain_data_parallelism_are_refused(tmp_path, monkeypatch, capsys, name):
    recipe = tiny_recipe(tmp_path)
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    monkeypatch.setenv(name, "true")
    for words in (["train", str(tmp_path / "recipe.yaml")], ["compare", str(tmp_path / "recipe.yaml"), "--out", "x"]):
        assert main(words) == 2
        assert f"{name}: clip-itm trains with data parallelism" in capsys.readouterr().err
    assert not Path(recipe.output_dir).exists()


# Batches


def test_a_batch_of_one_pair_is_refused_before_data_are_read(tmp_path, capsys):
    words = write_recipe(
        tmp_path, training={"batch_size": 1}, data={"source": "folder", "root": str(tmp_path / "none")}
    )
    assert main(words) == 2
    assert "training.batch_size 1: a pair alone has no negatives" in capsys.readouterr().err


def sampler_of(tmp_path, pair_image, world_size=1, **training):
    recipe = tiny_recipe(tmp_path, training=training)
    section = recipe.training
    sampler = PairBatchSampler(
        np.array(pair_image), section.batches, section.batch_size, section.captions_per_image, world_size=world_size
    )
    return recipe, sampler


@pytest.mark.parametrize(
    ("pair_image", "training", "alone"),
    [
        ([0, 0, 0, 0], {"batch_size": 2}, True),
        ([0, 0, 1, 1], {"batch_size": 2}, False),
        ([0] * 5 + [1] * 5, {"batch_size": 5, "batches": "grouped"}, True),
        ([0] * 5 + [1] * 5, {"batch_size": 3, "batches": "grouped"}, True),
        ([0] * 5 + [1] * 5, {"batch_size": 4, "batches": "grouped", "captions_per_image": 2}, False),
        ([0, 0, 1, 1, 2, 2, 3, 3], {"batch_size": 4, "batches": "grouped"}, False),
        ([0, 1, 2], {"batch_size": 2, "batches": "unique"}, False),
    ],
)
def test_batches_that_show_one_photo_alone_are_refused(tmp_path, pair_image, training, alone):
    recipe, sampler = sampler_of(tmp_path, pair_image, **training)
    if alone:
        with pytest.raises(ValueError, match=r"training.batch_size .* one photo alone.* no\s+negatives"):
            require_negatives(recipe, sampler)
    else:
        require_negatives(recipe, sampler)


def test_a_split_of_one_photo_is_refused(tmp_path, capsys):
    photos(tmp_path / "photos", count=4, captions=5)
    (tmp_path / "photos" / "captions.csv").write_text(
        "\n".join(
            line.replace(",train", ",test") if line.startswith("01") else line
            for line in (tmp_path / "photos" / "captions.csv").read_text().splitlines()
        )
        + "\n"
    )
    assert main(write_recipe(tmp_path)) == 2
    assert "every batch shows one photo alone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("pair_image", "world_size", "training", "refused"),
    [
        ([0, 1, 2, 3], 2, {"batch_size": 2}, True),  # a row in each process
        ([0, 1, 2, 3], 2, {"batch_size": 4, "batches": "unique"}, False),
        ([0] * 4 + [1] * 4, 2, {"batch_size": 8, "batches": "grouped", "captions_per_image": 4}, True),
        ([0] * 4 + [1] * 4, 1, {"batch_size": 8, "batches": "grouped", "captions_per_image": 4}, False),
        ([0] * 5 + list(range(1, 100)), 1, {"batch_size": 8}, False),
    ],
)
def test_batch_norm_of_a_single_row_is_told_before_training(tmp_path, pair_image, world_size, training, refused):
    recipe, sampler = sampler_of(tmp_path, pair_image, world_size, **training)
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval()
    frozen = nn.Sequential(nn.Linear(2, 2), nn.Identity())
    require_rows_for_batch_norm(recipe, frozen, sampler)
    if refused:
        with pytest.raises(ValueError, match=r"1 is batch norm, which needs two photos; raise training\.batch_size"):
            require_rows_for_batch_norm(recipe, model, sampler)
    else:
        require_rows_for_batch_norm(recipe, model, sampler)
    assert not model.training


def test_two_captions_of_a_photo_in_a_batch_of_two_under_batch_norm(tmp_path, capsys):
    """The similarity of SGR has batch norm over photos: torch would raise in some step of the run."""
    photos(tmp_path / "photos", count=8, captions=5)
    similarity = {"kind": "sgr", "regions": 4, "similarity_dim": 8, "token_dim": 16, "max_words": 20}
    head = {"kind": "triplet", "similarity": similarity}
    assert main(write_recipe(tmp_path, head=head, training={"batch_size": 2, "max_steps": 30})) == 2
    said = capsys.readouterr().err
    assert "training.batch_size 2, 2 pairs in each process: in epoch" in said
    assert "is batch norm, which needs two photos" in said


# Seeds


@pytest.mark.parametrize("value", [2**32, -1, 2**64])
@pytest.mark.parametrize("key", ["training.seed", "noise.seed", "data.seed", "data.split_seed"])
def test_seeds_are_those_that_numpy_takes(tmp_path, key, value):
    recipe = tiny_recipe(tmp_path)
    words = ["--data.source", "folder", "--data.root", "x"] if key == "data.split_seed" else []
    with pytest.raises(RecipeError, match=rf"{key}: .*found '?{value}"):
        recipe.with_overrides(*words, f"--{key}={value}")
    assert recipe.with_overrides(*words, f"--{key}={2**32 - 1}")


def test_the_largest_seed_trains(tmp_path):
    seeds = ["--training.seed", f"{2**32 - 1}", "--noise.seed", f"{2**32 - 1}", "--data.seed", f"{2**32 - 1}"]
    assert clip_itm.train(tiny_recipe(tmp_path, training={"max_steps": 1}).with_overrides(*seeds))["steps"] == 1


# Several processes


def test_what_one_process_says_is_raised():
    agree(None)
    with pytest.raises(OSError, match="no space"):
        agree(OSError("no space"))
