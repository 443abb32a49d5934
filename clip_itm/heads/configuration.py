"""`head:` section of a recipe: the method, that is similarity and loss."""

from typing import Literal

from pydantic import Field, PositiveFloat

from clip_itm.section import Section


class ClipHeadConfig(Section):
    """The plain contrastive head (InfoNCE in both directions)."""

    kind: Literal["clip"] = "clip"
    same_photo: Literal["negative", "mask", "positive"] = Field(
        "mask",
        description="another caption of the photo in a batch: a negative (as published), left out, or right too",
    )
    temperature: PositiveFloat | None = Field(
        None, description="temperature at the start; default: the pretrained one, 0.07 from scratch"
    )
    max_logit_scale: PositiveFloat | None = Field(
        None, description="cap on the learned multiplier 1 / temperature (pre-training habit: 100); default: none"
    )


HeadConfig = ClipHeadConfig
