"""docs/add_a_backbone.md is executed as it stands: its files, its changes, its tests, its recipe."""

import json

import pytest

from support.pages import apply_page, run


@pytest.mark.slow
def test_the_page_adds_a_backbone_that_trains(tmp_path):
    files = apply_page("add_a_backbone.md", tmp_path)
    assert files == [
        "clip_itm/backbones/conv_words_section.py",
        "clip_itm/backbones/conv_words.py",
        "tests/unit/backbones/test_conv_words.py",
        "conv_words.yaml",
    ]
    run(tmp_path, "pytest", "-q", "tests/unit/backbones/test_conv_words.py")
    small = "--data.train_images 40 --data.val_images 8 --data.test_images 8 --data.cache_dir cache"
    short = "--training.batch_size 40 --training.max_steps 2 --training.trackers [] --evaluation.bootstrap 0"
    run(tmp_path, "clip_itm.cli", "train", "conv_words.yaml", *small.split(), *short.split())
    best = tmp_path / "runs" / "conv_words" / "best"
    section = json.loads((best / "config.json").read_text())["backbone"]
    assert (section["kind"], section["vocab_size"] > 10) == ("conv-words", True)
    code = (best / "clip_itm_backbones.py").read_text(encoding="utf-8")
    assert "class ConvWords(Backbone)" in code, "the code of the towers goes with the checkpoint"
    assert "class OpenClip(" not in code
    assert "# convolutions + words, fine-tuned" in (best / "README.md").read_text(encoding="utf-8")
