"""What a command has imported when it ends, in a process of its own: nothing that trains, nothing of other kinds."""

import json
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image

from clip_itm.backbones.build import build_processor
from clip_itm.cli import main
from clip_itm.model import ItmModel
from support.processes import ENVIRONMENT
from support.tiny_backbones import tiny_config

# transformers itself imports torchvision, accelerate and scipy for every model, and open_clip imports timm
TRAINING = {
    "transformers.trainer",
    "transformers.training_args",
    "transformers.trainer_utils",
    "clip_itm.training.trainer",
    "clip_itm.runs.train",
    "clip_itm.auditing",
    "clip_itm.hub",
    "peft",
    "tensorboard",
    "trackio",
    "sklearn",
    "matplotlib",
    "evaluate",
    "onnx",
    "onnxruntime",
    "gradio",
    "faiss",
    "qdrant_client",
}
DATA = {"datasets", "clip_itm.data.load", "clip_itm.recipe", "clip_itm.runs", "clip_itm.training", "multiprocess"}
CODE = """
import json, sys
from clip_itm.cli import main

found = []
for words in json.loads(sys.argv[2]):
    assert main(words) == 0
    found.append(sorted(sys.modules))
with open(sys.argv[1], "w", encoding="utf-8") as file:
    json.dump(found, file)
"""


def imported(folder, *commands: list[str]) -> list[set[str]]:
    """What is imported when each of these commands has run, one behind the other in one fresh process."""
    words = [sys.executable, "-c", CODE, str(folder / "modules.json"), json.dumps(commands)]
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = [set(modules) for modules in json.loads((folder / "modules.json").read_text(encoding="utf-8"))]
    assert all({"torch", "transformers.modeling_utils", "clip_itm.model"} <= modules for modules in found)
    return found


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 56, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.mark.slow
def test_search_and_evaluation_import_nothing_that_trains(finished_run, photos, tmp_path):
    run, index = finished_run.output_dir, str(tmp_path / "index")
    assert main(["index", run, str(photos), "--out", index]) == 0
    search, evaluate = ["search", run, index, "a dog", str(photos / "1.png")], ["evaluate", run]
    export = ["export", run, "--to", "open_clip", "--out", str(tmp_path / "exported")]
    searched, exported, evaluated = imported(tmp_path, search, export, evaluate)
    assert not searched & (TRAINING | DATA | {"pandas", "pyarrow.dataset"})
    assert not (exported | evaluated) & (TRAINING - {"clip_itm.hub"})
    assert "clip_itm.retrieval.pipeline" in searched
    assert "clip_itm.hub.export_open_clip" in exported
    assert "clip_itm.evaluation.protocols" in evaluated


@pytest.mark.slow
def test_a_model_of_transformers_is_searched_without_open_clip(photos, tmp_path):
    section, model, index = tiny_config("clip", tmp_path), str(tmp_path / "model"), str(tmp_path / "index")
    ItmModel.from_backbone(section).save_pretrained(model)
    build_processor(section, None).save_pretrained(model)
    indexed, searched = imported(
        tmp_path, ["index", model, str(photos), "--out", index], ["search", model, index, "a dog"]
    )
    assert not indexed & (TRAINING | DATA | {"open_clip", "timm"})
    assert not searched & (TRAINING | DATA | {"open_clip", "timm"})


def test_what_is_not_to_be_imported_exists():
    assert all(find_spec(name) for name in TRAINING | DATA)
