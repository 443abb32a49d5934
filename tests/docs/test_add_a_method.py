"""docs/add_a_method.md is executed as it stands: its files, its changes, its tests, its recipe."""

import json
import re

import pytest

from support.pages import apply_page, run
from support.paths import ROOT


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the package to which the page was applied."""
    folder = tmp_path_factory.mktemp("tree")
    assert len(apply_page("add_a_method.md", folder)) == 12
    return folder


def test_a_method_is_a_folder_and_a_line():
    text = (ROOT / "docs" / "add_a_method.md").read_text(encoding="utf-8")
    changes = re.findall(r"```diff\n(.*?)```", text, re.S)
    assert [len(re.findall(r"^\+[^+]", change, re.M)) for change in changes] == [1, 1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gce", "trimmed"])
def test_the_page_adds_a_method_that_trains(tree, kind):
    run(tree, "pytest", "-q", f"tests/unit/methods/test_{kind}.py")
    small = "--data.train_images 200 --data.val_images 40 --data.test_images 40 --training.epochs 4"
    words = [*small.split(), "--training.trackers", "[]", "--data.cache_dir", str(tree / "cache")]
    run(tree, "clip_itm.cli", "train", f"recipes/sample/{kind}.yaml", *words)
    folder = tree / f"runs/sample/{kind}"
    assert json.loads((folder / "best/config.json").read_text())["head"]["kind"] == kind
    code = (folder / "best" / "clip_itm_methods.py").read_text(encoding="utf-8")
    assert f"class {kind.capitalize()}Head(" in code, "the code of the head goes with the checkpoint"
    if kind == "trimmed":
        results = json.loads((folder / "results.json").read_text())
        assert [entry["method_epoch"] for entry in results["method_history"]] == [1, 2, 3, 4]
        assert results["wrong_pairs"]["auc"] > 0.5
        (checkpoint, *_) = folder.glob("checkpoint-*")
        assert (checkpoint / "trimmed_state.safetensors").is_file()
