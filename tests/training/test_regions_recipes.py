"""Every recipe on regions: valid, and trained from end to end on a tiny data set in the published layout."""

from pathlib import Path

import pytest
import yaml

from clip_itm.model import ItmModel
from clip_itm.processing import ItmProcessor
from clip_itm.recipe import Recipe, load_recipe
from clip_itm.runs.train import train
from support.paths import ROOT
from support.region_data import write_bert, write_regions

RECIPES = sorted(ROOT.glob("recipes/*/regions/*.yaml"))
NAMES = [f"{path.parts[-3]}-{path.stem}" for path in RECIPES]


def tiny(path: Path, folder: Path) -> Recipe:
    """The recipe at widths, lengths and batches that train in seconds."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    captions = content["data"].get("captions_per_image", 5)
    test = content["data"].get("test", "test")
    photos = {"train": 24, "dev": 6, test: 5} if captions == 5 else {"train": 80, "dev": 8, "test": 8}
    vectors = 12 if content["data"].get("global_vectors") else None
    write_regions(
        folder / "data", photos, ("dev", test), captions_per_image=captions, vectors=vectors, tsv=captions == 1
    )
    overrides = {
        "output_dir": folder / "run",
        "data.root": folder / "data",
        "data.cache_dir": folder / "cache",
        "data.num_workers": 0,
        "backbone.region_dim": 20,
        "training.epochs": 2,
        "training.batch_size": 20,
        "training.trackers": "[]",
        "training.log_every": 2,
        "evaluation.protocols": "[all]",
        "evaluation.bootstrap": 10,
    }
    if "embed_dim" not in content["backbone"] and content["backbone"]["image_encoder"] != "none":
        overrides["backbone.embed_dim"] = 32
    if content["backbone"]["text_encoder"] == "bert":
        overrides["backbone.text_model"] = write_bert(folder / "bert")
    else:
        overrides |= {"backbone.word_dim": 16, "backbone.min_word_count": 1}
    head = content["head"]
    if vectors:
        overrides |= {
            "backbone.global_dim": vectors,
            "head.embed_dim": 32,
            "head.prototypes": 16,
            "head.queue_length": 40,
        }
        overrides |= {"head.prototypes_after": 0.2, "head.graph_after": 0.5, "head.num_heads": 4}
    if head["kind"] == "dive":
        overrides |= {"head.module.head_dim": 8, "head.module.heads": 2}
    if head["kind"] == "crcl":
        overrides |= {"head.schedules": "[1, 1]", "head.frozen_epochs": 1, "training.epochs": 4}
    if "similarity" in head:
        overrides |= {"head.similarity.max_words": 12}
    return load_recipe(path, [word for key, value in overrides.items() for word in (f"--{key}", str(value))])


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_valid(path):
    recipe = load_recipe(path)
    assert recipe.output_dir == f"runs/{path.parts[-3]}/regions/{path.stem}"
    assert recipe.backbone.kind == recipe.data.source == "regions"


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_trains(path, tmp_path):
    results = train(tiny(path, tmp_path))
    assert results["best"]["all"]["metrics"]["rsum"] > 0
    best = tmp_path / "run" / "best"
    model, processor = ItmModel.from_pretrained(best), ItmProcessor.from_pretrained(best)
    assert model.backbone.config.vocab_size == len(processor.tokenizer)
