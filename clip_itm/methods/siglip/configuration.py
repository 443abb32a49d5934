"""`head:` section of the sigmoid loss."""

from typing import Literal

from pydantic import Field, PositiveFloat

from clip_itm.methods.section import HeadSection, SameCaption
from clip_itm.similarity.configuration import CosineSection, SimilarityConfig


class SiglipHeadConfig(HeadSection):
    """Every image and caption of the batch is a yes-or-no question of its own."""

    kind: Literal["siglip"] = "siglip"
    similarity: SimilarityConfig = CosineSection()
    temperature: PositiveFloat | None = Field(
        None, description="temperature at the start; default: the pretrained one, 0.1 from scratch"
    )
    bias: float | None = Field(None, description="bias at the start; default: the pretrained one, -10 from scratch")
    same_image: Literal["negative", "mask", "positive"] = Field(
        "mask",
        description="another caption of the photo in a batch: a negative (as published), left out, or a positive",
    )
    same_caption: SameCaption = "negative"
