"""A tiny random model with an index of photos and one of captions, for the tests of the app."""

from pathlib import Path

from PIL import Image
from tiny_backbones import CAPTIONS, PHOTOS, tiny_backbone

from clip_itm.configuration import ItmConfig
from clip_itm.model import ItmModel
from clip_itm.retrieval.pipeline import ImageTextRetrievalPipeline

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
