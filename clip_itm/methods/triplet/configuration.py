"""`head:` section of the triplet loss."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt

from clip_itm.methods.section import HeadSection, MaskedCaption
from clip_itm.similarity.configuration import CosineSection, SimilarityConfig


class TripletHeadConfig(HeadSection):
    """Bidirectional hinge, with the hardest negative (VSE++) or all."""

    kind: Literal["triplet"] = "triplet"
    similarity: SimilarityConfig = CosineSection()
    margin: NonNegativeFloat = Field(0.2, description="a pair that scores this much above a negative costs nothing")
    negatives: Literal["hardest", "all"] = Field("hardest", description="which of the batch count against a pair")
    reduction: Literal["sum", "mean"] = Field("sum", description="over pairs; the published sum grows with the batch")
    warmup_epochs: NonNegativeInt = Field(
        0, description="epochs with all negatives at the start; hardest ones can make towers from scratch collapse"
    )
    same_image: Literal["negative", "mask"] = Field(
        "mask", description="another caption of the photo in a batch: a negative (as published), or left out"
    )
    same_caption: MaskedCaption = "negative"

    def conflict(self, training) -> str | None:
        if self.warmup_epochs and self.negatives == "all":
            return "head.warmup_epochs does nothing with head.negatives: all; leave it out"
        return None
