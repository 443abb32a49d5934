"""Fixtures shared by all tests."""

import os
from pathlib import Path

import numpy as np
import pytest
from paths import ROOT

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
