"""Folds in every kind of run: under each similarity, on images and on regions, whatever the recipe says of training."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from clip_itm.methods.crossfit import trainer as crossfit
from clip_itm.recipe import Recipe, parse_recipe
from clip_itm.runs.train import train
from clip_itm.training.clean_probability import CleanProbability
from support.data_folders import photo, write
from support.region_data import WIDTH, write_regions
from support.tiny import SMALL, tiny_recipe

GRAPH = {"regions": 4, "similarity_dim": 8, **SMALL}
DROPOUT = {"image_dropout": 0.2, "word_dropout": 0.2}
REGIONS = {"kind": "regions", "region_dim": WIDTH, "embed_dim": 16, "word_dim": 8, "min_word_count": 1}


def photos(folder: Path, count: int, captions: int = 1, weighted: bool = False) -> dict:
    """Grey photos, `count` to train on and six of val; the weights of captions grow from 0 to 1."""
    lines = []
    for k in range(count + 6):
        photo(folder / "photos" / f"{k}.png", grey=255 * k // (count + 6))
        weight = {"caption_weights": [k / count] * captions} if weighted and k < count else {}
        texts = [f"grey number {k} of a kind {j}" for j in range(captions)]
        lines.append(
            json.dumps({"file_name": f"{k}.png", "captions": texts, "split": "train" if k < count else "val", **weight})
        )
    write(folder / "photos" / "metadata.jsonl", lines)
    return {"source": "folder", "root": str(folder / "photos")}


def regions(folder: Path, **keys) -> dict:
    write_regions(folder / "regions", **keys)
    return {
        "source": "regions",
        "root": str(folder / "regions"),
        "captions_per_image": keys.get("captions_per_image", 5),
    }


def trained(folder: Path) -> str:
    """A run to start from."""
    recipe = recipe_of(folder / "start", training={"max_steps": 2})
    train(recipe)
    return recipe.output_dir


def recipe_of(folder: Path, data: dict | None = None, start_from: str | None = None, **sections) -> Recipe:
    """A tiny recipe in a new folder; `data` and a backbone of another kind replace the sample and its towers."""
    folder.mkdir()
    backbone = sections.pop("backbone", {})
    content = json.loads(tiny_recipe(folder, **sections).model_dump_json())
    content["backbone"] = backbone if "kind" in backbone else {**content["backbone"], **backbone}
    if start_from is not None:  # the same towers, and they are named by a file
        content["start_from"] = start_from
        content["backbone"]["model"] = str(Path(start_from).parent / "tiny_clip.json")
    if data is not None:
        content["data"] = {**data, "cache_dir": str(folder / "cache")}
    return parse_recipe(content, "tiny recipe")


RUNS = {  # sections of both runs, and keys of crossfit
    "bf16, accumulated": (
        {
            "backbone": DROPOUT,
            "training": {
                "precision": "bf16",
                "gradient_accumulation_steps": 2,
                "activation_checkpointing": True,
                "batches": "unique",
                "batch_size": 16,
                "evaluate_every": 2,
                "save_every": 3,
            },
        },
        {"candidates": 8},
    ),
    "adapters": (
        {
            "start_from": trained,
            "backbone": {**DROPOUT, "lora": {"rank": 2, "dropout": 0.1}},
            "training": {
                "batches": "grouped",
                "captions_per_image": 2,
                "early_stopping_patience": 1,
                "guard": {"drop": 0, "action": "lower_rate"},
            },
        },
        {"folds": 3},
    ),
    "a few steps": ({"backbone": {"freeze_text": True}, "training": {"max_steps": 3, "warmup": 2, "ema": 0.5}}, {}),
    "scan": ({"head": {"similarity": {"kind": "scan", **SMALL}}}, {"candidates": 8, "siblings": False}),
    "saf": ({"head": {"similarity": {"kind": "saf", **GRAPH, "dropout": 0.2}}}, {"candidates": 20}),
    "sgr": ({"head": {"similarity": {"kind": "sgr", **GRAPH, "dropout": 0.2}}}, {}),
    "weights of the data": ({"data": lambda folder: photos(folder, 40, captions=3, weighted=True)}, {}),
    "regions": ({"data": regions, "backbone": REGIONS}, {}),
    "regions, saf": (
        {
            "data": lambda folder: regions(folder, photos={"train": 70, "dev": 8, "test": 8}, captions_per_image=1),
            "backbone": REGIONS,
            "head": {"similarity": {"kind": "saf", **GRAPH, "regions": 36}},
        },
        {"candidates": 8},
    ),
}
QUICK = ("bf16, accumulated", "a few steps")


def both(folder: Path, sections: dict, keys: dict) -> tuple[Path, Path, list]:
    """A plain run, and one of crossfit that doubts nobody; and what its folds have found before that."""
    found = []
    original = crossfit.CrossfitTrainer._estimate

    def nothing(self, judged):
        found.append((judged, original(self, judged)))
        ones = np.ones(len(found[0][1].values), dtype=np.float32)
        return CleanProbability(ones, ones, "by hand", self.data.noise.sha256, share=(0.0, 0.0, 0.1))

    sections = {"training": {}, **sections}
    sections["training"] = {"epochs": 2, **sections["training"]}
    sections |= {name: sections[name](folder) for name in ("data", "start_from") if name in sections}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crossfit.CrossfitTrainer, "_estimate", nothing)
        for name, own in (("plain", {"kind": "clip"}), ("crossfit", {"kind": "crossfit", "fold_epochs": 1, **keys})):
            train(recipe_of(folder / name, **{**sections, "head": {**sections.get("head", {}), **own}}))
    return folder / "plain" / "run", folder / "crossfit" / "run", found


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in RUNS])
def test_folds_judge_every_pair_and_leave_no_trace(tmp_path, name):
    """Where they doubt nobody, the run is the plain one to the bit: nothing is wrapped, drawn or kept twice."""
    plain, run, [(judged, estimated)] = both(tmp_path, *RUNS[name])
    scores = [scores for scores, _ in judged]
    pairs = np.concatenate([fold.pairs for fold in scores])
    np.testing.assert_array_equal(np.sort(pairs), np.arange(len(estimated.values)))
    for fold in scores:
        assert np.isfinite(fold.z).all()
        assert fold.z.std() > 0, "a judge to whom all pairs are the same has judged nothing"
        assert fold.is_made.all()
    expected, results = (json.loads((folder / "results.json").read_text()) for folder in (plain, run))
    for key in ("zero_shot", "last", "best", "best_step", "steps", "val_history"):
        assert results[key] == expected[key], key
    weights = load_file(plain / "best" / "model.safetensors")
    found = load_file(run / "best" / "model.safetensors")
    assert weights.keys() == found.keys()
    assert [each for each in weights if not (weights[each] == found[each]).all()] == []


# Hardly any data


def tiny(folder: Path, count: int, **sections) -> dict:
    """A run on `count` photos with one caption each."""
    (folder / "data").mkdir(parents=True)
    head = {"kind": "crossfit", "same_image": "negative", **sections.pop("head", {})}
    training = {"epochs": 2, "batch_size": 2, "batches": "unique", **sections.pop("training", {})}
    return train(recipe_of(folder / "it", photos(folder / "data", count), head=head, training=training, **sections))


@pytest.mark.parametrize("count", [4, 5, 9])
@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_a_handful_of_photos_with_a_caption_each(tmp_path, count, ratio):
    """Nobody is condemned by a judge who has seen next to nothing, also where all captions are wrong."""
    results = tiny(tmp_path, count, noise={"ratio": ratio, "level": "image"})
    assert results["steps"] == 2 * (count // 2)
    share = results["wrong_share"]
    assert share["share"] is None or share["low"] <= share["share"] <= share["high"]
    assert share["true"] is None if ratio == 0 else share["true"] > 0.5


def test_three_photos_are_judged_by_a_pretrained_model_alone(tmp_path):
    with pytest.raises(ValueError, match=r"head\.folds: 2 folds of 3 photos: .* add photos, or write 0"):
        tiny(tmp_path / "folds", 3)
    assert not (tmp_path / "folds" / "it" / "run" / "recipe.yaml").exists()
    assert tiny(tmp_path / "none", 3, head={"folds": 0})["steps"] == 2


@pytest.mark.parametrize(("estimate", "told"), [("truth", "0 of 6 captions are believed"), ("mixture", None)])
def test_other_estimates_where_all_captions_are_wrong(tmp_path, estimate, told):
    noise = {"ratio": 1.0, "level": "image"}
    if told is None:
        assert tiny(tmp_path, 6, head={"estimate": estimate}, noise=noise)["steps"] == 6
    else:
        with pytest.raises(ValueError, match=told):
            tiny(tmp_path, 6, head={"estimate": estimate}, noise=noise)
