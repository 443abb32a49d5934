"""docs/add_a_method.md is executed as it stands: its files, its changes, its tests, its recipe."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "add_a_method.md").read_text(encoding="utf-8")


def run(folder: Path, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_page_adds_a_method_that_trains(tmp_path):
    shutil.copytree(ROOT / "clip_itm", tmp_path / "clip_itm", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "recipes" / "sample", tmp_path / "recipes" / "sample")
    files = re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", PAGE, re.S)
    assert len(files) == 5
    for name, text in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "clip_itm/methods/gce/__init__.py").touch()
    (change,) = re.findall(r"```diff\n(.*?)```", PAGE, re.S)
    (tmp_path / "change.diff").write_text(change, encoding="utf-8")
    run(tmp_path, "git", "apply", "change.diff")
    run(
        tmp_path,
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--config",
        str(ROOT / "pyproject.toml"),
        "clip_itm/methods/gce",
    )
    run(tmp_path, sys.executable, "-m", "pytest", "-q", "tests/test_gce.py")
    small = "--data.train_photos 200 --data.val_photos 40 --data.test_photos 40 --training.max_steps 4"
    words = [*small.split(), "--training.trackers", "[]", "--data.cache_dir", str(tmp_path / "cache")]
    run(tmp_path, sys.executable, "-m", "clip_itm.cli", "train", "recipes/sample/gce.yaml", *words)
    best = tmp_path / "runs/sample/gce/best"
    assert json.loads((best / "config.json").read_text())["head"]["kind"] == "gce"
    assert (best / "clip_itm_methods_gce_head.py").is_file(), "the code of the head goes with the checkpoint"
    own = run(tmp_path, sys.executable, "-c", "import clip_itm; print(clip_itm.__file__)")
    assert str(tmp_path) in own, "the copy was tested, not the installed package"
