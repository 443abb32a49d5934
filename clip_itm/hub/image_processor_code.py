"""The image processor of this package in a folder of transformers' own classes, with the code that loads it there."""

from pathlib import Path

from clip_itm.checkpoint_code import write_processor_code
from clip_itm.image_processing import OpenClipImageProcessor

AUTO_MAP = {"AutoImageProcessor": "clip_itm_image_processing.OpenClipImageProcessor"}


def with_code(processor: OpenClipImageProcessor, folder: Path) -> OpenClipImageProcessor:
    """A copy of `processor` for a folder of transformers' own classes, and the modules that load it there."""
    write_processor_code(folder, ("clip_itm.image_processing", "OpenClipImageProcessor"))
    copy = OpenClipImageProcessor.of(processor)
    copy.auto_map = dict(AUTO_MAP)
    return copy
