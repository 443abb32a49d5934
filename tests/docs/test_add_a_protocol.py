"""docs/add_a_protocol.md is executed as it stands: its file, its change, its test, its recipe."""

import json

import pytest

from support.pages import apply_page, run


@pytest.mark.slow
def test_the_page_adds_a_protocol_that_evaluates(tmp_path):
    files = apply_page("add_a_protocol.md", tmp_path)
    assert files == [
        "clip_itm/evaluation/one_caption.py",
        "tests/unit/evaluation/test_one_caption.py",
        "one_caption.yaml",
    ]
    run(tmp_path, "pytest", "-q", "tests/unit/evaluation/test_one_caption.py")
    small = "--data.train_images 8 --data.val_images 4 --data.test_images 12 --data.cache_dir cache"
    asked = f"evaluate one_caption.yaml --json found.json --plot found.png --evaluation.bootstrap 0 {small}"
    said = run(tmp_path, "clip_itm.cli", *asked.split())
    assert "one-caption" in said
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["all"]["captions"] > found["all"]["images"] == 12
    assert found["one-caption"]["captions"] == found["one-caption"]["images"] == 12
    assert (tmp_path / "found.png").is_file()
