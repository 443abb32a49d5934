"""A saved model in this process and in one that has not this package (fresh_process.py)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from clip_itm.backbones.build import build_processor
from clip_itm.model import ItmModel
from clip_itm.processing import ItmProcessor
from clip_itm.retrieval.pipeline import ImageTextRetrievalPipeline
from support.tiny_backbones import CAPTIONS, tiny_config

WORDS = sorted({word for caption in CAPTIONS for word in caption.split()})
GALLERY = [*CAPTIONS, *(f"{one} {two}" for one, two in zip(WORDS, reversed(WORDS), strict=True)), *WORDS]
TOP = 10


def save(folder: Path, kind: str, head=None, **options) -> Path:
    """A tiny model and its processor in `folder`/saved."""
    folder.mkdir()
    config = tiny_config(kind, folder, **options)
    processor = build_processor(config, CAPTIONS)
    torch.manual_seed(0)
    ItmModel.from_backbone(config, head, processor).save_pretrained(folder / "saved")
    processor.save_pretrained(folder / "saved")
    return folder / "saved"


def inside(folder: Path, photo: Image.Image) -> dict[str, np.ndarray]:
    """What fresh_process.py finds, in this process."""
    model, processor = ItmModel.from_pretrained(folder).eval(), ItmProcessor.from_pretrained(folder)
    pipe = ImageTextRetrievalPipeline(model=model, processor=processor)
    pipe.index(GALLERY)
    hits = pipe(photo, top_k=TOP)
    with torch.inference_mode():
        return {
            "images": model.encode_images(**processor(images=[photo])).numpy(),
            "texts": model.encode_texts(**processor(text=GALLERY)).numpy(),
            "ids": np.array([hit["id"] for hit in hits]),
            "scores": np.array([hit["score"] for hit in hits]),
        }


def run_fresh(
    place: Path, models: list[str], photo: Path, again: Path | None, python=sys.executable, hide=True, **environment
):
    job = {"models": models, "photo": str(photo), "captions": GALLERY, "top_k": TOP, "out": str(place / "found.npz")}
    job |= {"again": None if again is None else str(again), "hide": hide}
    (place / "job.json").write_text(json.dumps(job))
    environment = {**os.environ, "HF_MODULES_CACHE": str(place / "modules"), "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(
        [python, Path(__file__).with_name("fresh_process.py"), place / "job.json"],
        env={name: value for name, value in environment.items() if value is not None},
        cwd=place,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    with np.load(place / "found.npz") as found:
        return [
            {name: found[f"{k}/{name}"] for name in ("images", "texts", "ids", "scores")} for k in range(len(models))
        ]


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found["ids"].tolist() == expected["ids"].tolist()
    for name in ("images", "texts", "scores"):
        np.testing.assert_allclose(found[name], expected[name], atol=1e-6)
