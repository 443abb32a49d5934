"""Recipes: what is accepted, what is refused and in which words."""

from pathlib import Path

import pytest
import yaml

from clip_itm.data.configuration import FolderData, SampleData
from clip_itm.recipe import Recipe, RecipeError, apply_overrides, describe_keys, load_recipe, parse_recipe

MINIMAL = {"backbone": {"kind": "open_clip"}}
SHIPPED = sorted(
    path for path in Path(__file__).parents[1].glob("recipes/*/*.yaml") if path.parent.name != "accelerate"
)


def parse(content: dict) -> Recipe:
    return parse_recipe(content, "r.yaml")


def test_defaults_and_round_trip():
    recipe = parse(MINIMAL)
    assert recipe.data.source == "sample"
    again = parse(yaml.safe_load(recipe.to_yaml()))
    assert again == recipe
    assert again.sha256 == recipe.sha256


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({}, ["r.yaml: backbone: this key is required"]),
        ({"backbone": {"kind": "open_clip", "modell": 3}}, ["backbone.modell: unknown key", "did you mean 'model'?"]),
        ({**MINIMAL, "trainin": {}}, ["r.yaml: trainin: unknown key", "did you mean 'training'?"]),
        ({**MINIMAL, "training": {"epoch": 3}}, ["training.epoch: unknown key", "'epochs'", "batch_size"]),
        ({**MINIMAL, "training": {"batch_size": "many"}}, ["training.batch_size:", "integer", "found 'many'"]),
        (
            {**MINIMAL, "training": {"batches": "odd"}},
            ["training.batches:", "'random', 'unique' or 'grouped'", "'odd'"],
        ),
        ({**MINIMAL, "noise": {"ratio": 1.5}}, ["noise.ratio:", "less than or equal to 1", "found 1.5"]),
        ({**MINIMAL, "noise": {"ratio": -0.1}}, ["noise.ratio:", "greater than or equal to 0"]),
        ({"backbone": {"kind": "resnet"}}, ["backbone.kind: expected one of open_clip", "found 'resnet'"]),
        ({**MINIMAL, "data": {"root": "x"}}, ["data.source: expected one of coco, flickr", "found 'nothing'"]),
        ({**MINIMAL, "data": {"source": "coco"}}, ["data.root: this key is required"]),
        ({"backbone": {"kind": "open_clip", "lora": {"rnk": 4}}}, ["backbone.lora.rnk: unknown key", "'rank'"]),
        ({**MINIMAL, "head": {"kind": "clipp"}}, ["head.kind:", "found 'clipp'"]),
    ],
)
def test_mistakes_name_the_key_and_its_neighbours(content, expected):
    with pytest.raises(RecipeError) as caught:
        parse(content)
    for part in expected:
        assert part in str(caught.value)


def test_every_mistake_is_told_at_once():
    with pytest.raises(RecipeError) as caught:
        parse({**MINIMAL, "noise": {"ratio": 2}, "training": {"epoch": 1, "learning_rate": -1}})
    assert len(str(caught.value).splitlines()) == 3


def test_overrides():
    recipe = parse(MINIMAL).with_overrides(
        "--noise.ratio", "0.4", "--training.learning_rate=2e-5", "--training.trackers", "[]", "--output_dir", "runs/x"
    )
    assert (recipe.noise.ratio, recipe.training.learning_rate) == (0.4, 2e-5)
    assert (recipe.training.trackers, recipe.output_dir) == ((), "runs/x")
    assert parse(MINIMAL).with_overrides("--training.trackers", "auto").training.trackers == ("auto",)
    with pytest.raises(RecipeError, match=r"--noise.ratio: the value is missing"):
        parse(MINIMAL).with_overrides("--noise.ratio")
    with pytest.raises(RecipeError, match=r"noise.ration: unknown key; did you mean 'ratio'"):
        parse(MINIMAL).with_overrides("--noise.ration", "0.4")


def test_hash_ignores_where_and_how_but_not_what():
    recipe = parse(MINIMAL)
    same = recipe.with_overrides("--output_dir", "elsewhere", "--data.num_workers", "4", "--training.trackers", "[]")
    assert same.sha256 == recipe.sha256
    assert recipe.with_overrides("--training.seed", "1").sha256 != recipe.sha256


def test_files(tmp_path):
    with pytest.raises(RecipeError, match=r"nothing.yaml: cannot read the recipe"):
        load_recipe(tmp_path / "nothing.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1, 2")
    with pytest.raises(RecipeError, match=r"broken.yaml: not valid YAML"):
        load_recipe(broken)
    broken.write_text("- 1")
    with pytest.raises(RecipeError, match="a recipe is a mapping with the sections output_dir, data"):
        load_recipe(broken)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_shipped_recipes_are_valid(path):
    assert load_recipe(path).output_dir.startswith("runs/")


def test_all_keys_are_described():
    keys = describe_keys()
    for key in ("--noise.ratio (default 0.0)", "data (coco):", "--data.root (required)", "--training.batches"):
        assert key in keys


def test_another_source_or_kind_leaves_the_keys_of_the_former_behind():
    """Keys that both have stay; keys that nobody has, or that were given for the wrong one, are still errors."""
    file = Path(__file__).parents[1] / "recipes" / "flickr8k" / "clip.yaml"
    words = ["--data.root", "elsewhere", "--data.source", "folder"]
    recipe = load_recipe(file, [*words, "--data.max_photos", "5"])
    assert recipe.data == FolderData(root="elsewhere", max_photos=5)
    assert load_recipe(file, words).with_overrides("--data.source", "sample").data == SampleData()
    with pytest.raises(RecipeError, match=r"data.layout: unknown key"):
        load_recipe(file, [*words, "--data.layout", "karpathy"])
    with pytest.raises(RecipeError, match=r"data.imagez: unknown key"):
        parse_recipe(apply_overrides({"data": {"source": "flickr", "root": "x", "imagez": 1}}, words), "recipe")
