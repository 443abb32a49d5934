"""Recipes: what is accepted, what is refused and in which words."""

import pytest
import yaml

from clip_itm.data.configuration import FolderData, SampleData
from clip_itm.kinds import METHODS
from clip_itm.recipe import Recipe, RecipeError, apply_overrides, describe_keys, load_recipe, parse_recipe
from support.paths import ROOT

MINIMAL = {"data": {"source": "sample"}, "backbone": {"kind": "open_clip"}}
SHIPPED = sorted(path for path in ROOT.glob("recipes/**/*.yaml") if path.parent.name != "accelerate")


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
        (
            {**MINIMAL, "backbone": {"kind": "open_clip", "modell": 3}},
            ["backbone.modell: unknown key", "did you mean 'model'?"],
        ),
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


@pytest.mark.parametrize(
    ("head", "training", "expected"),
    [
        (
            {"kind": "npc", "warmup_epochs": 3},
            {"epochs": 3},
            "head.warmup_epochs: 3 epochs of warm-up leave none of the 3 (training.epochs) for NPC; lower it",
        ),
        (
            {"kind": "npc", "warmup_epochs": 1, "bank": "b.npz"},
            {"epochs": 3},
            "head.bank and head.warmup_epochs cannot be combined",
        ),
        ({"kind": "npc", "bank": "b.npz", "weights": "w.npz"}, {}, "head.bank and head.weights cannot be combined"),
        ({"kind": "crcl", "weights": "w.npz"}, {}, "head.weights does nothing with head.initial_labels: one; write"),
        ({"kind": "crcl", "initial_labels": "crossfit"}, {}, "head.initial_labels: crossfit reads them from a file"),
        ({"kind": "npc", "rho": 1}, {}, "head.rho: input should be less than 1, found 1"),
        ({"kind": "npc", "rhoo": 0.5}, {}, "head.rhoo: unknown key; did you mean 'rho'?"),
        (
            {"kind": "npc", "weight_fn": "two"},
            {},
            "head.weight_fn: input should be 'tanh_step', 'tanh', 'ratio' or 'one'",
        ),
        (
            {"kind": "crcl", "softmax_set": 100},
            {"batch_size": 256},
            "head.softmax_set: 100 does not divide the batch of 256 pairs (training.batch_size)",
        ),
        (
            {"kind": "crcl", "schedules": [5, 5, 30]},
            {"epochs": 40},
            "training.epochs: 40, but the pieces [5, 5, 30] with 2 frozen epochs each (head.schedules, "
            "head.frozen_epochs) make 46; write training.epochs: 46",
        ),
        (
            {"kind": "crcl", "frozen_epochs": 3},
            {"epochs": 3},
            "head.frozen_epochs: 3 frozen epochs leave none of the 3 (training.epochs) to refine labels in; lower it",
        ),
        ({"kind": "crcl", "schedules": [5, 0]}, {}, "head.schedules.1: input should be greater than 0, found 0"),
        ({"kind": "crcl", "same_image": "positive"}, {}, "head.same_image: input should be 'negative' or 'mask'"),
        ({"kind": "clip", "warmup_epochs": 1}, {}, "head.warmup_epochs: unknown key"),
    ],
)
def test_a_head_that_does_not_fit_is_told_in_one_line(head, training, expected):
    with pytest.raises(RecipeError) as caught:
        parse({**MINIMAL, "head": head, "training": training})
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"r.yaml: {expected}")


@pytest.mark.parametrize(
    ("head", "training"),
    [
        ({"kind": "npc", "warmup_epochs": 2}, {"epochs": 3}),
        ({"kind": "npc", "bank": "b.npz"}, {"epochs": 1}),
        ({"kind": "npc", "weights": "w.npz", "warmup_epochs": 1}, {"epochs": 3}),
        ({"kind": "crcl", "weights": "w.npz", "initial_labels": "crossfit"}, {"epochs": 3}),
        ({"kind": "crcl", "softmax_set": 64}, {"batch_size": 256}),
        ({"kind": "crcl", "schedules": [5, 5, 30]}, {"epochs": 46}),
        ({"kind": "crcl", "schedules": [2], "frozen_epochs": 0}, {"epochs": 2}),
        ({"kind": "crcl", "frozen_epochs": 0}, {"epochs": 1}),
    ],
)
def test_a_head_that_fits_survives_the_file(head, training):
    recipe = parse({**MINIMAL, "head": head, "training": training})
    assert {name: getattr(recipe.head, name) for name in head} == {
        name: tuple(value) if isinstance(value, list) else value for name, value in head.items()
    }
    assert parse(yaml.safe_load(recipe.to_yaml())) == recipe


def test_overrides_may_change_the_head_and_are_checked_together():
    recipe = parse({**MINIMAL, "head": {"kind": "crcl", "schedules": [1, 2]}, "training": {"epochs": 7}})
    with pytest.raises(RecipeError, match=r"make 5; write training.epochs: 5"):
        recipe.with_overrides("--head.frozen_epochs", "1")
    assert recipe.with_overrides("--head.frozen_epochs", "1", "--training.epochs", "5").training.epochs == 5
    other = recipe.with_overrides("--head", "{kind: npc, rho: 0.9}")
    assert (other.head.kind, other.head.rho) == ("npc", 0.9)
    assert other.sha256 != recipe.sha256


SCAN = {"kind": "scan", "direction": "i2t", "aggregation": "LogSumExp", "lse_scale": 5.0}


def test_another_kind_within_a_section_leaves_keys_of_the_former_behind():
    recipe = parse({**MINIMAL, "head": {"kind": "polyloss", "form": "avg", "similarity": SCAN}})
    sgr = recipe.with_overrides("--head.similarity.kind", "sgr", "--head.similarity.regions", "9")
    assert (sgr.head.form, sgr.head.similarity.kind, sgr.head.similarity.regions) == ("avg", "sgr", 9)
    assert recipe.with_overrides("--head.kind", "triplet").head.similarity.direction == "i2t"
    assert recipe.with_overrides("--head.kind", "dive").head.similarity.kind == "smooth_chamfer"
    assert recipe.with_overrides("--head.kind", "npc").head.kind == "npc"
    with pytest.raises(RecipeError, match=r"kind: expected one of smooth_chamfer, chamfer, max, match_probability"):
        recipe.with_overrides("--head.kind", "dive", "--head.similarity.kind", "scan")
    dive = recipe.with_overrides("--head.kind", "dive", "--head.loss.negatives", "all")
    assert dive.with_overrides("--head.loss.kind", "infonce").head.loss.kind == "infonce"
    with pytest.raises(RecipeError, match=r"head.similarity.direction: unknown key"):
        recipe.with_overrides("--head.similarity.kind", "sgr", "--head.similarity.direction", "t2i")


def test_help_lists_the_keys_of_sections_within_sections():
    keys = describe_keys()
    for line in (
        "--head.similarity.direction t2i|i2t (default t2i)",
        "--head.loss.margin number > 0 (default 0.2)",
        "head.module (of dive), kind slots:",
    ):
        assert line in keys
    assert "Section(" not in keys


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


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("npc", "ec2b93bf661a0f5aeb628b88178e247ff46383d9995a5e99bf8ec0f432444f45"),
        ("crcl", "c76787e1180e62c656c06f81705fdbd3486980f53b1db2a5302eb0176861801d"),
    ],
)
def test_keys_that_came_later_leave_the_hash_as_it_was(kind, expected):
    content = {"data": {"source": "sample"}, "backbone": {"kind": "open_clip", "model": "m.json"}}
    recipe = parse({**content, "head": {"kind": kind}})
    assert recipe.head.weights is None
    assert recipe.sha256 == expected
    labels = {"initial_labels": "crossfit"} if kind == "crcl" else {}
    assert parse({**content, "head": {"kind": kind, "weights": "w.npz", **labels}}).sha256 != expected


@pytest.mark.parametrize("kind", METHODS)
def test_what_is_said_of_equal_captions_is_in_the_hash_unless_it_is_the_default(kind):
    content = {"data": {"source": "sample"}, "backbone": {"kind": "open_clip", "model": "m.json"}}
    plain = parse({**content, "head": {"kind": kind}}).sha256
    said = {**content, "head": {"kind": kind, "same_caption": "negative"}, "evaluation": {"same_caption": False}}
    assert parse(said).sha256 == plain
    assert parse({**said, "head": {"kind": kind, "same_caption": "mask"}}).sha256 != plain
    assert parse({**said, "evaluation": {"same_caption": True}}).sha256 != plain


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
    for key in (
        "--noise.ratio number in [0, 1] (default 0.0)",
        "data, source coco:",
        "--data.root text (required)",
        "--training.batches random|unique|grouped (default random)",
    ):
        assert key in keys


def test_another_source_or_kind_leaves_the_keys_of_the_former_behind():
    """Keys that both have stay; keys that nobody has, or that were given for the wrong one, are still errors."""
    file = ROOT / "recipes" / "flickr8k" / "clip.yaml"
    words = ["--data.root", "elsewhere", "--data.source", "folder"]
    recipe = load_recipe(file, [*words, "--data.max_images", "5"])
    assert recipe.data == FolderData(root="elsewhere", max_images=5)
    assert load_recipe(file, words).with_overrides("--data.source", "sample").data == SampleData()
    with pytest.raises(RecipeError, match=r"data.layout: unknown key"):
        load_recipe(file, [*words, "--data.layout", "karpathy"])
    with pytest.raises(RecipeError, match=r"data.imagez: unknown key"):
        parse_recipe(apply_overrides({"data": {"source": "flickr", "root": "x", "imagez": 1}}, words), "recipe")
