"""Bad starts of runs: batches, seeds, folders that hold something else, and training that diverges."""

import json
import shutil

import yaml

from support.bad_input.cases import case, recipe


@case("a batch of one pair")
def _(place):
    return recipe(place, training={"batch_size": 1})


@case("chunks that hold the whole batch")
def _(place):
    return recipe(place, training={"cache_chunk": 4})


@case("one batch that is made of one batch")
def _(place):
    return recipe(place, training={"accumulate": "cached"})


@case("batches that hold the captions of one photo")
def _(place):
    return recipe(place, training={"batch_size": 2, "batches": "grouped", "captions_per_image": 2})


@case("a seed that NumPy does not take")
def _(place):
    return [*recipe(place), "--training.seed", f"{2**32}"]


@case("a recipe without data")
def _(place):
    words = recipe(place)
    content = yaml.safe_load((place / "recipe.yaml").read_text(encoding="utf-8"))
    del content["data"]
    (place / "recipe.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return words


@case("an output folder that is a file")
def _(place):
    (place / "run").write_text("mine", encoding="utf-8")
    return recipe(place)


@case("an output folder in which the user's own recipe lies")
def _(place):
    words = recipe(place)
    (place / "run").mkdir()
    shutil.copy(place / "recipe.yaml", place / "run" / "recipe.yaml")
    return words


@case("`--overwrite` of a folder that is no run")
def _(place):
    (place / "run").mkdir()
    (place / "run" / "photo.jpg").write_bytes(b"mine")
    return [*recipe(place), "--overwrite"]


@case("`--overwrite` of a run with something else in it")
def _(place):
    words = recipe(place)
    (place / "run" / "other").mkdir(parents=True)
    shutil.copy(place / "recipe.yaml", place / "run" / "recipe.yaml")
    (place / "run" / "written.json").write_text(json.dumps({"files": ["recipe.yaml"]}), encoding="utf-8")
    (place / "run" / "photo.jpg").write_bytes(b"mine")
    (place / "run" / "other" / "results.json").write_text("{}", encoding="utf-8")
    return [*words, "--overwrite"]


@case("a checkpoint that does not say of which run it is")
def _(place):
    (place / "run" / "checkpoint-18").mkdir(parents=True)
    (place / "run" / "checkpoint-18" / "trainer_state.json").write_text("{}", encoding="utf-8")
    return recipe(place)


@case("training that diverges")
def _(place):
    return recipe(place, training={"learning_rate": 1e6, "warmup": 0, "max_steps": 3})


@case("a comparison in a folder with files of that name")
def _(place):
    words = recipe(place)
    (place / "grid").mkdir()
    (place / "grid" / "comparison.md").write_text("mine", encoding="utf-8")
    return ["compare", words[1], "--out", str(place / "grid")]
