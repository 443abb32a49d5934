"""Whole runs on product data: one caption under many photos, for every method, in every mode and kind of batch."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clip_itm.cli import main
from clip_itm.methods.npc.step import NpcStep
from clip_itm.recipe import Recipe, parse_recipe
from clip_itm.runs.train import train
from support.killed_runs import interrupt_at
from support.region_data import WIDTH, write_regions
from support.tiny import HEADS, TINY_CLIP
from support.trainers import pieces

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*(photos|labels are below|starts from random|AAHR's|too high for this model)"),
]
FIRST = ("red mug", "Red mug.", "blue cup", "green pot")  # the first two are one caption
METHODS = {
    "clip": {"kind": "clip"},
    "npc": {"kind": "npc", "rho": 0.5},
    "crcl": {"kind": "crcl", "temperature": 0.2, "frozen_epochs": 0},
    "triplet": {"kind": "triplet"},
    "crossfit": {"kind": "crossfit", "fold_epochs": 1},
    "robust": {"kind": "robust", "loss": "gce"},
    "warming up": {"kind": "polyloss", "warmup_epochs": 2},
    **{name: HEADS[name] for name in ("dive", "aahr", "polyloss", "siglip", "osa")},
}
METHODS["aahr"] = {**METHODS["aahr"], "queue_length": 12}
MASKING = ("crcl", "triplet", "warming up", "dive", "aahr", "polyloss")


def products(folder: Path) -> Path:
    """36 photos, each with one of three colours and a caption of its own: 12 show a red mug."""
    root = folder / "products"
    root.mkdir()
    generator, lines = np.random.default_rng(0), []
    for number in range(36):
        colour = np.eye(3, dtype=np.float32)[max(0, number % 4 - 1)]
        pixels = 180 * colour + 60 * generator.random((32, 32, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(root / f"{number}.png")
        split = "train" if number < 24 else "val"
        for caption in (FIRST[number % 4], f"item number {number}"):
            lines.append({"image": f"{number}.png", "caption": caption, "split": split})
    (root / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "tiny_clip.json").write_text(json.dumps(TINY_CLIP))
    return root


def recipe_of(folder: Path, head: dict, **training) -> Recipe:
    content = {
        "output_dir": str(folder / "run"),
        "data": {"source": "folder", "root": str(folder / "products"), "cache_dir": str(folder / "cache")},
        "backbone": {"kind": "open_clip", "model": str(folder / "tiny_clip.json")},
        "head": head,
        "training": {"epochs": 3, "batch_size": 12, "learning_rate": 1e-3, "trackers": [], **training},
        "evaluation": {"bootstrap": 0},
    }
    return parse_recipe(content, "products")


def weights_after(recipe: Recipe) -> torch.Tensor:
    _, model, _, trainer = pieces(recipe)
    trainer.train()
    ends = torch.cat([value.detach().double().flatten() for value in model.parameters()])
    assert ends.isfinite().all()
    return ends


@pytest.mark.parametrize("name", METHODS)
def test_every_mode_of_every_method_trains_and_is_another_training(name, tmp_path):
    products(tmp_path)
    modes = ("negative", "mask") if name in MASKING else ("negative", "mask", "positive")
    plain = weights_after(recipe_of(tmp_path, METHODS[name]))
    ends = {mode: weights_after(recipe_of(tmp_path, METHODS[name] | {"same_caption": mode})) for mode in modes}
    assert torch.equal(ends.pop("negative"), plain), "the default"
    assert not any(torch.equal(end, plain) for end in ends.values())
    if len(ends) == 2:
        assert not torch.equal(ends["mask"], ends["positive"])


@pytest.mark.parametrize("name", ["clip", "npc", "crossfit"])
def test_where_no_batch_has_a_caption_twice_modes_are_one_training(name, tmp_path):
    products(tmp_path)
    batches = {"batches": "unique", "unique_captions": True, "batch_size": 6}
    head = METHODS[name] | {"memory_coef": 0, "weight_fn": "one"} if name == "npc" else METHODS[name]
    ends = [
        weights_after(recipe_of(tmp_path, head | {"same_caption": mode}, **batches))
        for mode in ("negative", "mask", "positive")
    ]
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])
    assert not torch.equal(ends[0], weights_after(recipe_of(tmp_path, head, batches="unique", batch_size=6)))


def test_the_memory_of_npc_knows_equal_captions_under_accumulation(tmp_path, monkeypatch):
    products(tmp_path)
    seen, call = [], NpcStep.__call__

    def step(self, inputs, fraction):
        seen.append({name: inputs[name] for name in ("caption_ids", "memory_caption_ids", "memory_caption")})
        return call(self, inputs, fraction)

    monkeypatch.setattr(NpcStep, "__call__", step)
    head = METHODS["npc"] | {"same_caption": "mask"}
    weights_after(recipe_of(tmp_path, head, gradient_accumulation_steps=2, epochs=1))
    assert len(seen) == 4
    for batch in seen:
        own = batch["memory_caption"] < 12  # entries that are pairs of the batch have its captions
        assert torch.equal(batch["caption_ids"][batch["memory_caption"][own]], batch["memory_caption_ids"][own])


@pytest.mark.parametrize("name", ["clip", "aahr"])
def test_an_interrupted_run_ends_as_the_uninterrupted_one(name, tmp_path):
    ends = []
    for folder in (tmp_path / "whole", tmp_path / "twice"):
        folder.mkdir()
        products(folder)
        head = METHODS[name] | {"same_caption": "mask"}
        unique = {"batches": "unique", "unique_captions": True, "batch_size": 6}
        recipe = recipe_of(folder, head, save_every=3, evaluate_every=3, **unique)
        if folder.name == "twice":
            interrupt_at(11, recipe)
        ends.append(train(recipe)["last"]["all"]["metrics"])
    assert ends[0] == ends[1]


def test_a_run_whose_equal_captions_are_right_says_so_everywhere(tmp_path, capsys):
    products(tmp_path)
    recipe = recipe_of(tmp_path, METHODS["clip"] | {"same_caption": "mask"}, epochs=1)
    plain = train(recipe.with_overrides("--output_dir", str(tmp_path / "plain")))
    results = train(recipe.with_overrides("--evaluation.same_caption", "true"))
    assert results["provenance"]["recipe_sha256"] != plain["provenance"]["recipe_sha256"]
    for stage in ("zero_shot", "best", "last"):
        assert results[stage]["all"]["protocol"] == "all, equal captions right"
        assert plain[stage]["all"]["protocol"] == "all"
        assert results[stage]["all"]["metrics"]["rsum"] > plain[stage]["all"]["metrics"]["rsum"] + 20
    assert results["best_val_rsum"] > plain["best_val_rsum"] + 20, "val, by which the checkpoint is chosen, too"
    card = (tmp_path / "run" / "best" / "README.md").read_text()
    assert "all, equal captions right: 12 photos, 24 captions" in card
    found = tmp_path / "found.json"
    assert main(["evaluate", str(tmp_path / "run"), "--json", str(found)]) == 0
    assert json.loads(found.read_text())["all"] == results["best"]["all"]
    assert "equal captions right" in capsys.readouterr().out
    again = ["--evaluation.same_caption", "true", "--json", str(tmp_path / "again.json")]
    assert main(["evaluate", str(tmp_path / "plain"), *again]) == 0
    assert json.loads((tmp_path / "again.json").read_text())["all"]["protocol"] == "all, equal captions right"
    assert main(["evaluate", str(tmp_path / "run"), "--evaluation.protocols", "[flickr-1k]"]) == 2
    assert "same_caption: under the protocol flickr-1k" in capsys.readouterr().err


def test_regions_have_captions_that_are_equal_too(tmp_path):
    write_regions(tmp_path / "regions")
    file = tmp_path / "regions" / "train_caps.txt"
    captions = file.read_text().splitlines()
    captions[::5] = ["The same DOG"] * 20 + ["the same dog ."] * 20
    file.write_text("".join(f"{caption}\n" for caption in captions))
    content = {
        "output_dir": str(tmp_path / "run"),
        "data": {"source": "regions", "root": str(tmp_path / "regions"), "cache_dir": str(tmp_path / "cache")},
        "backbone": {"kind": "regions", "region_dim": WIDTH, "embed_dim": 16, "word_dim": 8, "min_word_count": 1},
        "training": {"batch_size": 20, "max_steps": 3, "learning_rate": 1e-3, "trackers": []},
    }
    ends = {
        mode: weights_after(parse_recipe(content | {"head": {"kind": "crcl", "same_caption": mode}}, "regions"))
        for mode in ("negative", "mask")
    }
    assert not torch.equal(*ends.values())
