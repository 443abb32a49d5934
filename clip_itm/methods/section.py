"""What the `head:` sections of a recipe have in common."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat

from clip_itm.section import Section

SAME_CAPTION = "an equal caption of another photo in a batch: a negative, left out"
SameCaption = Annotated[Literal["negative", "mask", "positive"], Field(description=f"{SAME_CAPTION}, or a positive")]
MaskedCaption = Annotated[Literal["negative", "mask"], Field(description=SAME_CAPTION.replace(", left", ", or left"))]


class HeadSection(Section):
    """The base of every `head:` section; `kind` names the method."""

    def conflict(self, training) -> str | None:
        """A sentence that says why this head cannot work with the `training:` section of its recipe, else None."""

    def caution(self, training) -> str | None:
        """A sentence of warning about this head with the `training:` section of its recipe, else None."""


class ContrastiveSection(HeadSection):
    """What the heads around the contrastive loss have in common."""

    same_image: Literal["negative", "mask", "positive"] = Field(
        "mask",
        description="another caption of the photo in a batch: a negative (as published), left out, or a positive",
    )
    same_caption: SameCaption = "negative"
    temperature: PositiveFloat | None = Field(None, description="at the start; default: pretrained, 0.07 from scratch")
    max_logit_scale: PositiveFloat | None = Field(
        None, description="cap on the learned multiplier 1 / temperature (usual in pre-training: 100); default: none"
    )


def warmup_conflict(epochs: int, training, method: str) -> str | None:
    """A sentence if a warm-up of `epochs` leaves none of the epochs of `training:` to `method`, else None."""
    if epochs < training.epochs:
        return None
    return (
        f"head.warmup_epochs: {epochs} epochs of warm-up leave none of the {training.epochs} (training.epochs) for "
        f"{method}; lower it"
    )
