"""A kind of backbone that somebody adds runs to its end, the model card included."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import yaml

from support.paths import ROOT
from support.tiny import TINY_CLIP

OWN_SECTION = """class OwnBackbone(BackboneSection):
    kind: Literal["own"] = "own"
    architecture: str


BackboneConfig = Annotated[
    OwnBackbone
    | """
OWN_KIND = """        case "own":
            from clip_itm.backbones.own import build, processor
        case "open_clip":"""
OWN_MODULE = '''"""Towers of one's own."""

from clip_itm.backbones import openclip
from clip_itm.backbones.configuration import OpenClipBackbone


def inner(config):
    tokens = {"special_token_ids": config.special_token_ids, "hidden_word_id": config.hidden_word_id}
    return OpenClipBackbone(model=config.architecture, **tokens)


def build(config, weights):
    backbone = openclip.build(inner(config), weights)
    backbone.config = config
    return backbone


def processor(config, captions):
    return openclip.processor(inner(config), captions)
'''


@pytest.mark.slow
def test_a_run_with_a_backbone_of_ones_own_kind_ends_with_a_card(tmp_path):
    """As somebody adds one: a section, a case, a module; nothing else knows it."""
    package = tmp_path / "clip_itm"
    shutil.copytree(ROOT / "clip_itm", package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, before, after in (
        ("configuration.py", "BackboneConfig = Annotated[\n    ", OWN_SECTION),
        ("build.py", '        case "open_clip":', OWN_KIND),
    ):
        source = (package / "backbones" / name).read_text(encoding="utf-8")
        assert source.count(before) == 1
        (package / "backbones" / name).write_text(source.replace(before, after), encoding="utf-8")
    (package / "backbones" / "own.py").write_text(OWN_MODULE, encoding="utf-8")
    (tmp_path / "tiny.json").write_text(json.dumps(TINY_CLIP))
    content = {
        "output_dir": "run",
        "data": {"source": "sample", "train_images": 20, "val_images": 4, "test_images": 4, "cache_dir": "cache"},
        "backbone": {"kind": "own", "architecture": "tiny.json"},
        "training": {"batch_size": 20, "max_steps": 1, "trackers": []},
        "evaluation": {"bootstrap": 0},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    done = subprocess.run(
        [sys.executable, "-m", "clip_itm.cli", "train", "recipe.yaml"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "run" / "best" / "README.md").read_text(encoding="utf-8")
    assert "# own, fine-tuned" in card
    assert "(`own`)" in card
