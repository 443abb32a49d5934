"""What the cases of test_bad_input.py are made of."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from support.tiny import TINY_CLIP

Case = Callable[[Path], list[str]]
CASES: dict[str, Case] = {}


def case(title: str):
    def register(make: Case) -> Case:
        CASES[title] = make
        return make

    return register


def photos(folder: Path, count: int = 12, captions: int = 2) -> Path:
    """A folder of drawn photos with captions.csv; `split` says train, val or test."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    lines = ["image,caption,split"]
    for number in range(count):
        pixels = generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.jpg")
        split = ("train", "train", "val", "test")[number % 4]
        lines += [f"{number:02d}.jpg,photo {number} seen the {k}. time,{split}" for k in range(captions)]
    (folder / "captions.csv").write_text("\n".join(lines) + "\n")
    return folder


def recipe(place: Path, **sections) -> list[str]:
    """`train recipe.yaml` on the folder of photos, or on the sections given."""
    (place / "tiny.json").write_text(json.dumps(TINY_CLIP))
    content = {
        "output_dir": str(place / "run"),
        "data": {"source": "folder", "root": str(place / "photos"), "cache_dir": str(place / "cache")},
        "backbone": {"kind": "open_clip", "model": str(place / "tiny.json")},
        "training": {"batch_size": 4, "max_steps": 1, "trackers": []},
        "evaluation": {"bootstrap": 0},
    }
    if "data" not in sections and not (place / "photos").exists():
        photos(place / "photos")
    for name, keys in sections.items():
        content[name] = {**content.get(name, {}), **keys} if name in ("training", "evaluation") else keys
    if "data" in sections:
        content["data"] = {"cache_dir": str(place / "cache"), **sections["data"]}
    (place / "recipe.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return ["train", str(place / "recipe.yaml")]
