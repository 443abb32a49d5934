"""`head:` section of PolyLoss."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, model_validator

from clip_itm.methods.section import HeadSection, MaskedCaption
from clip_itm.similarity.configuration import CosineSection, SimilarityConfig

Quadratic = tuple[float, float, float]


class PolyLossHeadConfig(HeadSection):
    """Polynomial weighting of positives and hardest negatives."""

    kind: Literal["polyloss"] = "polyloss"
    similarity: SimilarityConfig = CosineSection()
    margin: NonNegativeFloat = Field(
        0.2, description="a pair takes part while its hardest negative scores no more than this below it"
    )
    positive: Quadratic = Field(
        (0.2, -0.7, 0.5), description="coefficients of the penalty of a positive, highest order first"
    )
    negative: Quadratic = Field(
        (0.9, -0.4, 0.03), description="coefficients of the penalty of a negative, highest order first"
    )
    form: Literal["max", "avg"] = Field("max", description="the hardest negative, or the mean of those in the margin")
    joint_clamp: bool = Field(False, description="clamp the sum of both polynomials at 0 instead of each")
    neg_floor: bool = Field(False, description="no penalty below the larger root, where the polynomial rises again")
    same_image: Literal["negative", "mask"] = Field(
        "mask", description="another caption of the photo in a batch: a negative (as released), or left out"
    )
    same_caption: MaskedCaption = "negative"
    score_map: Literal["none", "affine"] = Field(
        "none",
        description="affine: learned a S + b, set at the first batch of PolyLoss so that negatives have mean 0.1 and "
        "positives 0.5; needed where scores are compressed, as in zero-shot CLIP",
    )
    warmup_epochs: NonNegativeInt = Field(0, description="epochs of the plain contrastive loss at the start")
    warmup_temperature: PositiveFloat = Field(0.05, description="temperature of these epochs")

    @model_validator(mode="after")
    def _negatives_have_a_root(self):
        a, b, c = self.negative
        if self.neg_floor and (a <= 0 or b * b < 4 * a * c):
            raise ValueError(
                f"neg_floor needs a polynomial that opens upwards and has a root; negative is {list(self.negative)}"
            )
        return self

    @property
    def floor(self) -> float | None:
        """The similarity below which negatives cost nothing, the larger root; None without `neg_floor`."""
        if not self.neg_floor:
            return None
        a, b, c = self.negative
        return (-b + (b * b - 4 * a * c) ** 0.5) / (2 * a)

    def conflict(self, training) -> str | None:
        if self.warmup_epochs >= training.epochs:
            return (
                f"head.warmup_epochs: {self.warmup_epochs} epochs of warm-up leave none of the {training.epochs} "
                "(training.epochs) for PolyLoss; lower it"
            )
        return None
