"""docs/add_a_source.md is executed as it stands: its file, its changes, its tests, its recipe."""

import json
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from clip_itm.data.configuration import AnySource
from clip_itm.data.load import SOURCES
from support.pages import apply_page, run
from support.paths import ROOT


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
    files = apply_page("add_a_source.md", tmp_path)
    assert files == ["clip_itm/data/sources/sidecar.py", "tests/unit/data/test_sidecar.py", "sidecar.yaml"]
    run(tmp_path, "pytest", "-q", "tests/unit/data/test_sidecar.py")

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
    assert {name: (split["images"], split["captions"]) for name, split in splits.items()} == {
        "train": (12, 24),
        "val": (4, 8),
        "test": (4, 8),
    }
