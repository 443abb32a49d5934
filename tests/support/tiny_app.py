"""A tiny random model with an index of photos and one of captions, for the tests of the app."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from clip_itm.configuration import ItmConfig
from clip_itm.model import ItmModel
from clip_itm.retrieval.pipeline import ImageTextRetrievalPipeline
from support.tiny_backbones import CAPTIONS, PHOTOS, tiny_backbone

IMAGES = ("0.png", "1.png", "2 <b>.png", "3.png")


def tiny_pipeline(folder: Path, seed: int = 0) -> ImageTextRetrievalPipeline:
    backbone, processor = tiny_backbone("open_clip", folder, seed)
    config = ItmConfig(backbone=backbone.config.model_dump(mode="json"), head={"kind": "clip"})
    return ImageTextRetrievalPipeline(model=ItmModel(config, backbone=backbone), processor=processor)


def write_photos(folder: Path) -> Path:
    """Four photos of noise under the names in IMAGES."""
    folder.mkdir()
    for name, photo in zip(IMAGES, PHOTOS, strict=True):
        photo.save(folder / name)
    return folder


def indexed_pipeline(folder: Path) -> ImageTextRetrievalPipeline:
    """Photos in `folder`/photos and CAPTIONS, both indexed."""
    pipe = tiny_pipeline(folder)
    pipe.index(write_photos(folder / "photos"))
    pipe.index(CAPTIONS)
    return pipe


def write_bomb(path: Path) -> Path:
    """100 megapixels in 12 kB."""
    Image.new("1", (10_000, 10_000)).save(path)
    return path


WORDS = ["a Red (mug)", "two cats", "a red cat", "50 % off", "<i>cat</i>"]


def write_audit(path, known: bool = True, pairs: int = 60):
    """`pairs` rows as `clip-itm audit` writes them, all of one photo."""
    Image.new("RGB", (8, 6), "red").save(path.parent / "red.jpg")
    number = np.arange(pairs)
    columns = {
        "pair": number[::-1],
        "image_id": [f"image {k}" for k in number],
        "image": [None if k % 3 == 2 else str(path.parent / ("gone.jpg" if k % 3 else "red.jpg")) for k in number],
        "caption_id": [f"caption {k}" for k in number],
        "caption": [f"{WORDS[k % 5]} {k}" for k in number],
        "clean_probability": number / (pairs - 1),
        "rank": number + 1,
        "method": ["loss"] * pairs,
        "known_wrong": pa.array(number % 2 == 0) if known else pa.nulls(pairs, pa.bool_()),
    }
    pq.write_table(pa.table(columns), path)
    return path


def write_review(path: Path, pairs: int = 60) -> Path:
    """`write_audit` with groups and suggestions: every fourth caption is a placeholder, every third has better ones.

    The data set holds every third photo itself, and that of the last pair but one is gone.
    """
    table = pq.read_table(write_audit(path, known=False, pairs=pairs))
    images = [image and image.replace("gone.jpg", "red.jpg") for image in table["image"].to_pylist()]
    images[-2] = str(path.parent / "gone.jpg")
    table = table.set_column(table.column_names.index("image"), "image", pa.array(images, pa.string()))
    captions = table["caption"].to_pylist()
    captions = ["click to enlarge" if k % 4 == 1 else caption for k, caption in enumerate(captions)]
    groups = [["interface"] if k % 4 == 1 else [] for k in range(pairs)]
    better = [[f"<b>better</b> {k}", f"best {k}"] if k % 3 == 0 else None for k in range(pairs)]
    table = table.set_column(table.column_names.index("caption"), "caption", pa.array(captions))
    for name, values in (("groups", groups), ("suggestion", better)):
        table = table.append_column(name, pa.array(values, pa.list_(pa.string())))
    pq.write_table(table, path)
    return path
