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


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the package to which the page was applied."""
    folder = tmp_path_factory.mktemp("tree")
    shutil.copytree(ROOT / "clip_itm", folder / "clip_itm", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "recipes" / "sample", folder / "recipes" / "sample")
    files = re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", PAGE, re.S)
    assert len(files) == 12
    for name, text in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    for number, change in enumerate(re.findall(r"```diff\n(.*?)```", PAGE, re.S)):
        assert len(re.findall(r"^\+[^+]", change, re.M)) == 1, "a line"
        (folder / f"{number}.diff").write_text(change, encoding="utf-8")
        run(folder, "git", "apply", f"{number}.diff")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gce", "trimmed"])
def test_the_page_adds_a_method_that_trains(tree, kind):
    (tree / f"clip_itm/methods/{kind}/__init__.py").touch()
    pyproject, package = str(ROOT / "pyproject.toml"), f"clip_itm/methods/{kind}"
    run(tree, sys.executable, "-m", "ruff", "check", "--config", pyproject, package)
    run(tree, sys.executable, "-m", "ruff", "format", "--check", "--config", pyproject, package)
    run(tree, sys.executable, "-m", "pytest", "-q", f"tests/test_{kind}.py")
    small = "--data.train_photos 200 --data.val_photos 40 --data.test_photos 40 --training.epochs 4"
    words = [*small.split(), "--training.trackers", "[]", "--data.cache_dir", str(tree / "cache")]
    run(tree, sys.executable, "-m", "clip_itm.cli", "train", f"recipes/sample/{kind}.yaml", *words)
    folder = tree / f"runs/sample/{kind}"
    assert json.loads((folder / "best/config.json").read_text())["head"]["kind"] == kind
    code = (folder / "best" / "clip_itm_methods.py").read_text(encoding="utf-8")
    assert f"class {kind.capitalize()}Head(" in code, "the code of the head goes with the checkpoint"
    own = run(tree, sys.executable, "-c", "import clip_itm; print(clip_itm.__file__)")
    assert str(tree) in own, "the copy was tested, not the installed package"
    if kind == "trimmed":
        results = json.loads((folder / "results.json").read_text())
        assert [entry["method_epoch"] for entry in results["method_history"]] == [1, 2, 3, 4]
        assert results["wrong_pairs"]["auc"] > 0.5
        (checkpoint, *_) = folder.glob("checkpoint-*")
        assert (checkpoint / "trimmed_state.safetensors").is_file()
