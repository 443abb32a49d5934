"""Fixtures shared by all tests."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
pytest.register_assert_rewrite("support")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded; processes that tests start inherit it
if os.environ.get("CLIP_ITM_TEST_GPU") != "1":  # so that tests mean the same on every machine
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(scope="session")
def golden():
    """Loader of tests/golden/NAME.npz, without pickle."""

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(ROOT / "tests" / "golden" / f"{name}.npz", allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}

    return load


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real photos, or a skip that says why."""
    folder = Path(os.environ.get("CLIP_ITM_REAL_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "flickr8k").is_dir():
        pytest.skip(f"no real photos: {folder} has no flickr8k (set CLIP_ITM_REAL_DATA)")
    return folder


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """A finished run of two steps with a checkpoint of each: its recipe. Only read it; `own_run` is there to change."""
    from clip_itm.runs.train import train
    from clip_itm.training.checkpoints import checkpoints
    from support.tiny import tiny_recipe  # here, behind the settings above

    training = {"max_steps": 2, "save_every": 1, "trackers": ["tensorboard"]}
    recipe = tiny_recipe(tmp_path_factory.mktemp("finished"), training=training)
    train(recipe)
    assert [path.name for path in checkpoints(Path(recipe.output_dir))] == ["checkpoint-1", "checkpoint-2"]
    return recipe


@pytest.fixture
def own_run(finished_run, tmp_path):
    """A copy of it in `tmp_path`/run: the recipe with this place, and the folder."""
    folder = tmp_path / "run"
    shutil.copytree(finished_run.output_dir, folder)
    return finished_run.with_overrides("--output_dir", str(folder)), folder
