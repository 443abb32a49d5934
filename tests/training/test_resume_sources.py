"""A run on tars, remote tars, Parquet files and texts goes on to the bit after it was stopped within an epoch."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_itm.recipe import Recipe, parse_recipe
from clip_itm.runs.train import train
from support.killed_runs import assert_same_end, interrupt_at
from support.tars import photo_bytes, samples, write_tar
from support.tiny import tiny_recipe

SPLITS = {"train": (0, 48), "val": (48, 8), "test": (56, 8)}


def write_tars(folder: Path) -> dict:
    for split, (first, count) in SPLITS.items():
        for number in range(2):  # of tars
            half = count // 2
            write_tar(folder / f"{split}-{number}.tar", samples(first + number * half, half))
    return {"source": "webdataset", "root": str(folder)}


def write_remote_tars(folder: Path) -> dict:
    return write_tars(folder) | {"root": f"file://{folder}", "remote_cache_gb": 1e-5}


def write_parquet(folder: Path) -> dict:
    folder.mkdir()
    for split, (first, count) in SPLITS.items():
        numbers = range(first, first + count)
        table = pa.table({"jpg": [photo_bytes(n) for n in numbers], "caption": [f"photo {n}" for n in numbers]})
        pq.write_table(table, folder / f"{split}.parquet")
    return {"source": "parquet", "root": str(folder)}


def write_texts(folder: Path) -> dict:
    for split, (first, count) in SPLITS.items():
        (folder / split).mkdir(parents=True)
        for number in range(first, first + count):
            (folder / split / f"{number}.jpg").write_bytes(photo_bytes(number))
            (folder / split / f"{number}.txt").write_text(f"photo {number}")
    return {"source": "text_files", "root": str(folder)}


def recipe_of(folder: Path, data: dict) -> Recipe:
    """3 steps an epoch; random crops and dropout make epoch and generator matter, 40 % noise the draw."""
    folder.mkdir()
    content = tiny_recipe(
        folder,
        backbone={"word_dropout": 0.2, "image_dropout": 0.2, "text_dropout": 0.1},
        training={"epochs": 2, "batch_size": 16, "save_every": 1},
    ).model_dump(mode="json", exclude_unset=True)
    content["data"] = data | {"cache_dir": str(folder / "cache"), "random_crop": 0.6}
    return parse_recipe(content, "recipe")


@pytest.mark.slow
@pytest.mark.parametrize("write", [write_tars, write_remote_tars, write_parquet, write_texts])
def test_a_run_that_was_stopped_within_an_epoch_ends_as_one_that_was_not(tmp_path, write):
    data = write(tmp_path / "data")
    whole, stopped = (recipe_of(tmp_path / name, data) for name in ("whole", "stopped"))
    train(whole)
    interrupt_at(4, stopped)
    train(stopped)
    assert_same_end(Path(stopped.output_dir), Path(whole.output_dir), "clip")


def test_all_sources_give_the_same_photos_for_the_same_captions(tmp_path):
    from clip_itm.data.images import read_image
    from clip_itm.data.load import load_splits

    found = []
    for write in (write_tars, write_remote_tars, write_parquet, write_texts):
        recipe = recipe_of(tmp_path / write.__name__, write(tmp_path / f"data {write.__name__}"))
        rows = load_splits(recipe.data)["train"].rows
        found.append({row["captions"][0]: read_image(row["image"]).tobytes() for row in rows})
    assert found[0] == found[1] == found[2] == found[3]
    assert len(found[0]) == 48


def test_a_folder_of_tars_is_trained_on_from_python(tmp_path):
    from clip_itm import ItmTrainer
    from support.tiny import save_tiny_model

    save_tiny_model(tmp_path)
    write_tars(tmp_path / "tars")
    keys = {"caption_key": "caption", "check_photos": False, "cache_dir": str(tmp_path / "cache")}
    trainer = ItmTrainer(
        str(tmp_path / "model"), data=tmp_path / "tars", output_dir=tmp_path / "run", max_steps=1, batch_size=16, **keys
    )
    assert trainer.recipe.data.source == "webdataset"
    assert trainer.recipe.data.caption_key == "caption"
    assert trainer.train()["steps"] == 1
