"""Keys that were renamed: errors in what a user writes, read in what the program wrote, and no other hashes for it."""

import json

import pytest
import yaml

from clip_itm.keys import section_types
from clip_itm.recipe import Recipe, RecipeError, load_recipe, parse_recipe
from clip_itm.renamed import RENAMED
from clip_itm.runs.stored import OF_RESULT, read_results

SAMPLE = {"data": {"source": "sample"}, "backbone": {"kind": "open_clip", "model": "ViT-B-32"}}
REGIONS = {"data": {"source": "regions", "root": "r"}, "backbone": {"kind": "regions"}}
OLD = [(section, old, new) for section, names in RENAMED.items() for old, new in names.items()]


@pytest.mark.parametrize(("section", "old", "new"), OLD)
def test_an_old_key_of_a_user_is_an_error_that_names_the_new_one(tmp_path, section, old, new):
    content = {name: dict(value) for name, value in (REGIONS if old == "whole_dev" else SAMPLE).items()}
    told = f"{section}.{old}: this key is called {section}.{new} now"
    with pytest.raises(RecipeError, match=told):
        parse_recipe({**content, section: {**content.get(section, {}), old: 1}}, "mine.yaml")
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(RecipeError, match=told):
        load_recipe(path, [f"--{section}.{old}", "1"])


def test_a_key_that_another_kind_had_is_no_key_of_this_one():
    with pytest.raises(RecipeError, match=r"head.same_photo: unknown key.* \(known here: kind, "):
        parse_recipe({**SAMPLE, "head": {"kind": "dive", "same_photo": "mask"}}, "mine.yaml")


def test_a_saved_run_of_version_0_1_0_has_the_same_recipe_and_hash(tmp_path):
    new = {"max_images": 7, "train_images": 40, "val_images": 20, "test_images": 20}
    old = {"max_photos": 7, "train_photos": 40, "val_photos": 20, "test_photos": 20}
    training = {"batch_size": 8, "batches": "grouped"}
    for content, name in ((new, "new"), (old, "old")):
        rest = [{"lr_multipliers": {"head": 2.0}, "captions_per_image": 4}, {"same_image": "negative"}]
        if name == "old":
            rest = [{"rate_multipliers": {"head": 2.0}, "captions_per_photo": 4}, {"same_photo": "negative"}]
        (tmp_path / name).mkdir()
        saved = {**SAMPLE, "data": {"source": "sample", **content}, "training": training | rest[0], "head": rest[1]}
        (tmp_path / name / "recipe.yaml").write_text(yaml.safe_dump(saved), encoding="utf-8")
    assert load_recipe(tmp_path / "old") == load_recipe(tmp_path / "new")
    # as version 0.1.0 printed it
    assert load_recipe(tmp_path / "old").sha256 == "559caeef5272ada526b2549b8b46c3079ba11896a205dbbac234cb96a939ab41"


def test_results_of_version_0_1_0_are_read(tmp_path):
    result = dict.fromkeys(OF_RESULT, 1)
    content = {stage: {"all": result} for stage in ("zero_shot", "best", "last")}
    content |= {"split": "test", "noise": {}, "seed": 0, "best_step": 3, "best_dev_rsum": 77.0}
    content |= {"dev_history": [{"eval_rsum": 5.0, "step": 0}], "provenance": {"splits": {"val": {"photos": 6}}}}
    (tmp_path / "results.json").write_text(json.dumps(content), encoding="utf-8")
    found = read_results(tmp_path / "results.json")
    assert (found["best_val_rsum"], found["val_history"][0]["eval_rsum"]) == (77.0, 5.0)
    assert found["provenance"]["splits"]["val"] == {"images": 6}


def test_every_renamed_key_is_a_key_of_today():
    for name, names in RENAMED.items():
        sections = section_types(Recipe.model_fields[name].annotation)
        assert set(names.values()) <= {key for section in sections for key in section.model_fields}
