"""Runs on noise by the nearest photos: which features say it, and what a folder keeps of it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from clip_itm.data.images import read_image
from clip_itm.data.load import load_splits
from clip_itm.data.noise import CaptionNoise
from clip_itm.runs import setup
from clip_itm.runs.models import load_model
from clip_itm.runs.neighbours import mean_regions, nearest_images
from clip_itm.runs.resume import finished
from clip_itm.runs.setup import make_model, noise_of, prepare
from clip_itm.runs.train import train
from support.region_data import write_regions
from support.tiny import tiny_recipe

NEIGHBOUR = {"level": "neighbour", "neighbours": 5}


def pixels(rows, processor) -> torch.Tensor:
    images = [read_image(image) for image in rows["image"]]
    return processor(images=images, return_tensors="pt")["pixel_values"]


def require_neighbours(noise, pairs, vectors: torch.Tensor) -> None:
    """Every wrong caption is of one of the five nearest photos by these vectors."""
    nearest = nearest_images(vectors, 5)
    wrong = np.flatnonzero(~noise.is_clean(pairs))
    assert len(wrong) == int(0.4 * len(pairs))
    assert all(pairs.image[noise.source[pair]] in nearest[pairs.image[pair]] for pair in wrong)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of one epoch on noise of level neighbour, at the recipe's own features."""
    recipe = tiny_recipe(tmp_path_factory.mktemp("run"), noise=NEIGHBOUR, training={"epochs": 1})
    return recipe, train(recipe)


@torch.no_grad()
def test_by_default_photos_are_near_by_the_tower_before_training(run):
    recipe, results = run
    splits = load_splits(recipe.data)
    noise = CaptionNoise.load(f"{recipe.output_dir}/noise.npz")
    assert results["noise"] == {
        **{"sha256": noise.sha256, "ratio": 0.4, "level": "neighbour", "seed": 99},
        **{"neighbours": 5, "model": "random weights"},
    }
    own = recipe.with_overrides("--training.seed", f"{recipe.noise.seed}")
    model, processor = make_model(own, splits)
    vectors = model.eval().backbone.image_trunk(pixels(splits["train"].rows, processor)).pooled
    require_neighbours(noise, splits["train"].pairs, vectors)


def test_seeds_and_methods_share_the_draw(run):
    recipe, results = run
    for other in (recipe.with_overrides("--training.seed", "7"), recipe.with_overrides("--head.kind", "dive")):
        assert noise_of(other, load_splits(other.data)).sha256 == results["noise"]["sha256"]
    more = recipe.with_overrides("--noise.neighbours", "6")
    assert noise_of(more, load_splits(more.data)).sha256 != results["noise"]["sha256"]
    assert more.sha256 != recipe.sha256


def test_results_stand_without_encoding_a_photo(run, monkeypatch):
    recipe, results = run
    monkeypatch.setattr(setup, "_noise_encoder", lambda *_: pytest.fail("a model was built"))
    assert json.dumps(finished(recipe, Path(recipe.output_dir)), sort_keys=True) == json.dumps(results, sort_keys=True)


def test_the_card_says_how_captions_were_chosen(run):
    text = Path(run[0].output_dir, "best", "README.md").read_text(encoding="utf-8")
    assert "ratio 0.4 (neighbour level, 5 nearest photos by random weights), seed 99" in text


@torch.no_grad()
def test_another_model_can_be_named(run, tmp_path):
    """Here a run, by whose embeddings photos are near."""
    place = run[0].output_dir
    recipe = tiny_recipe(tmp_path, noise={**NEIGHBOUR, "model": place}, data={"random_crop": 0.5})
    splits = load_splits(recipe.data)
    noise = noise_of(recipe, splits)
    assert noise.details == {"neighbours": 5, "model": place}
    assert noise.sha256 != run[1]["noise"]["sha256"]
    model = load_model(place)
    require_neighbours(
        noise,
        splits["train"].pairs,
        model.encode_images(pixels(splits["train"].rows, model.processor).to(model.device)).cpu(),
    )
    assert tiny_recipe(tmp_path).sha256 != recipe.sha256


def test_regions_are_near_by_their_mean(tmp_path):
    write_regions(tmp_path / "data")
    recipe = tiny_recipe(tmp_path, noise=NEIGHBOUR)
    content = {**recipe.model_dump(mode="json"), "backbone": {"kind": "regions", "region_dim": 20}}
    content["data"] = {"source": "regions", "root": str(tmp_path / "data"), "cache_dir": str(tmp_path / "cache")}
    recipe = type(recipe).model_validate(content)
    splits = load_splits(recipe.data)
    noise = noise_of(recipe, splits)
    assert noise.details["model"] == "the mean of a photo's regions"
    regions = splits["train"].regions
    require_neighbours(noise, splits["train"].pairs, mean_regions(regions, len(splits["train"])))


def test_what_gives_no_neighbours_is_named_by_its_key(run, tmp_path):
    wrong = tiny_recipe(tmp_path, noise={**NEIGHBOUR, "model": "nowhere"})
    with pytest.raises(ValueError, match=r"^noise\.model: .*no folder nowhere"):
        prepare(wrong)
    alone = tiny_recipe(tmp_path, noise=NEIGHBOUR, data={"train_images": 1})
    with pytest.raises(ValueError, match="the training split has 1"):
        noise_of(alone, load_splits(alone.data))
    write_regions(tmp_path / "data")
    content = alone.model_dump(mode="json") | {"backbone": {"kind": "regions", "region_dim": 20}}
    content["data"] = {"source": "regions", "root": str(tmp_path / "data"), "cache_dir": str(tmp_path / "cache")}
    content["noise"]["model"] = run[0].output_dir
    regions = type(alone).model_validate(content)
    with pytest.raises(ValueError, match=r"noise\.model: .* reads photos, which data\.source regions does not give"):
        noise_of(regions, load_splits(regions.data))


def test_a_recipe_without_the_new_keys_keeps_its_hash(tmp_path):
    recipe = tiny_recipe(tmp_path)
    assert tiny_recipe(tmp_path, noise={"neighbours": 50, "model": None}).sha256 == recipe.sha256
    for keys in ({"neighbours": 49}, {"model": "x"}, {"level": "noun"}):
        assert tiny_recipe(tmp_path, noise=keys).sha256 != recipe.sha256
