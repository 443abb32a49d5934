"""docs/add_a_source.md is executed as it stands: its file, its changes, its tests, its recipe."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from clip_itm.data.configuration import AnySource
from clip_itm.data.load import SOURCES

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "add_a_source.md").read_text(encoding="utf-8")


def run(folder: Path, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_section_has_its_source_and_its_file():
    sections = {section.model_fields["source"].default for section in get_args(AnySource)}
    assert sections == set(SOURCES)
    files = {path.stem for path in (ROOT / "clip_itm/data/sources").glob("*.py")}
    assert sections <= files
    assert {load.__module__ for load in SOURCES.values()} == {f"clip_itm.data.sources.{name}" for name in sections}


def test_all_sources_are_behind_one_door():
    inside = ROOT / "clip_itm/data/sources"
    others = [path for path in (ROOT / "clip_itm").rglob("*.py") if inside not in path.parents]
    opening = [path for path in others if "from clip_itm.data.sources" in path.read_text(encoding="utf-8")]
    assert [path.relative_to(ROOT).as_posix() for path in opening] == ["clip_itm/data/load.py"]


@pytest.mark.slow
def test_the_page_adds_a_source_that_is_read_and_checked(tmp_path):
    shutil.copytree(ROOT / "clip_itm", tmp_path / "clip_itm", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "recipes" / "sample", tmp_path / "recipes" / "sample")
    files = re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", PAGE, re.S)
    assert [name for name, _ in files] == [
        "clip_itm/data/sources/sidecar.py",
        "tests/test_sidecar.py",
        "sidecar.yaml",
    ]
    for name, text in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    (change,) = re.findall(r"```diff\n(.*?)```", PAGE, re.S)
    (tmp_path / "change.diff").write_text(change, encoding="utf-8")
    subprocess.run(["git", "apply", "change.diff"], cwd=tmp_path, check=True)
    settings = ("--config", str(ROOT / "pyproject.toml"), "clip_itm/data", "tests")
    run(tmp_path, "ruff", "check", *settings)
    run(tmp_path, "ruff", "format", "--check", *settings)
    run(tmp_path, "pytest", "-q", "tests/test_sidecar.py")

    draw = np.random.default_rng(0)
    for split, count in {"train": 12, "val": 4, "test": 4}.items():
        (tmp_path / "my_photos" / split).mkdir(parents=True)
        for number in range(count):
            photo = Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8))
            photo.save(tmp_path / "my_photos" / split / f"{number}.jpg")
            text = f"photo {number} of {split}\nanother caption of it\n"
            (tmp_path / "my_photos" / split / f"{number}.txt").write_text(text, encoding="utf-8")
    report = tmp_path / "report.json"
    checked = ("data", "check", "sidecar.yaml", "--json", str(report), "--data.cache_dir", str(tmp_path))
    small = ("--training.batch_size", "4", "--evaluation.split", "test")
    run(tmp_path, "clip_itm.cli", *checked, *small)
    splits = json.loads(report.read_text())["splits"]
    assert {name: (split["photos"], split["captions"]) for name, split in splits.items()} == {
        "train": (12, 24),
        "val": (4, 8),
        "test": (4, 8),
    }
