"""`head:` section of DivE; docs/papers/dive.md 11 names the choices on a CLIP."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from clip_itm.methods.section import HeadSection, MaskedCaption
from clip_itm.section import Section


class SlotsSection(Section):
    """Learned queries that compete for the tokens, as published."""

    kind: Literal["slots"] = "slots"
    iterations: PositiveInt = Field(4, le=1000, description="T, how often the slots are refined")
    heads: PositiveInt = Field(4, description="attention heads; the slots compete in each separately")
    head_dim: PositiveInt = Field(512, description="width of a head; on CLIP 128 to 256 is enough")
    ffn_mult: PositiveInt = Field(4, description="hidden width of the feed-forward layers, in widths of a slot")
    tied: bool = Field(True, description="the same weights in every iteration; keys and values are computed once")
    norm: Literal["pre", "post"] = Field("pre", description="LayerNorm before each layer, or after each residual")
    activation: Literal["gelu", "relu"] = Field("gelu", description="of the feed-forward layers")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1, description="on the attention's output and within the feed-forward layers"
    )
    image_positions: Literal["none", "sine", "learned", "sine_grid", "learned_grid"] = Field(
        "none", description="added to keys; `*_grid` are two-dimensional, for square grids of tokens"
    )
    text_positions: Literal["none", "sine", "learned"] = Field(
        "sine", description="added to keys; CLIP's tokens already carry theirs"
    )
    compat_leaky_mask: bool = Field(
        False, description="padding takes part as in the released code; only for converted weights"
    )


class PvseSection(Section):
    """Self-attention with a column per element (PVSE), the module before DivE; use it with residual `ln_of_sum`."""

    kind: Literal["pvse"] = "pvse"


class SmoothChamferSection(Section):
    """A soft maximum over pairs of elements, averaged over both sets."""

    kind: Literal["smooth_chamfer"] = "smooth_chamfer"
    alpha: PositiveFloat = Field(16.0, description="the larger, the closer to Chamfer; the same in evaluation")


class SetSimilaritySection(Section):
    """Chamfer, the best pair of elements, or the mean matching probability of all (slope and shift are learned)."""

    kind: Literal["chamfer", "max", "match_probability"]


class TripletSection(Section):
    """The triplet loss on set similarities."""

    kind: Literal["triplet"] = "triplet"
    negatives: Literal["hardest", "all", "clamped"] = Field(
        "hardest",
        description="the hardest of the batch; all of them; or all with hinges cut at the margin, so that the hardest "
        "pairs do not pull (published as semi-hard)",
    )
    margin: PositiveFloat = Field(0.2, description="a pair that scores this much above a negative costs nothing")
    warmup_epochs: NonNegativeInt = Field(0, description="epochs with all negatives before `negatives` takes effect")


class InfoNceSection(Section):
    """The contrastive loss on set similarities; other captions of an image are left out."""

    kind: Literal["infonce"] = "infonce"
    temperature: PositiveFloat | None = Field(
        None, description="temperature at the start; default: the pretrained one, 0.07 from scratch"
    )


class DiveHeadConfig(HeadSection):
    """A set of diverse embeddings per image and per caption, compared by smooth-Chamfer similarity."""

    kind: Literal["dive"] = "dive"
    image_elements: PositiveInt = Field(4, description="elements of a photo's set")
    text_elements: PositiveInt = Field(4, description="elements of a caption's set")
    module: Annotated[SlotsSection | PvseSection, Field(discriminator="kind")] = SlotsSection()
    residual: Literal["ln_sum", "gated", "none", "sum", "ln_of_sum"] = Field(
        "ln_sum",
        description="element e and pooled feature g before normalisation: LN(g) + e (published); g / |g| + gate e / "
        "sqrt(D), which starts near a pretrained CLIP; e; g + e; or LN(g + e) (PVSE)",
    )
    gate_init: float = Field(0.1, description="the learned gate of residual `gated` at the start")
    similarity: Annotated[SmoothChamferSection | SetSimilaritySection, Field(discriminator="kind")] = (
        SmoothChamferSection()
    )
    loss: Annotated[TripletSection | InfoNceSection, Field(discriminator="kind")] = TripletSection()
    same_caption: MaskedCaption = "negative"
    mmd_weight: NonNegativeFloat = Field(0.01, description="weight of the discrepancy between the modalities")
    mmd_squared: bool = Field(False, description="squared distances in its kernel (published: false)")
    diversity_weight: NonNegativeFloat = Field(0.01, description="weight of the term that keeps slots apart")
    orthogonality_weight: NonNegativeFloat = Field(0.0, description="weight of PVSE's penalty on slots, off in DivE")

    @field_validator("module", "similarity", "loss", mode="before")
    @classmethod
    def _without_kind_is_published(cls, value, info):
        published = cls.model_fields[info.field_name].default.kind
        return {"kind": published, **value} if isinstance(value, dict) else value

    def conflict(self, training) -> str | None:
        if self.loss.kind == "triplet" and 0 < training.epochs <= self.loss.warmup_epochs:
            return (
                f"head.loss.warmup_epochs: {self.loss.warmup_epochs} epochs with all negatives leave none of the "
                f"{training.epochs} (training.epochs) for {self.loss.negatives}; lower it, or write negatives: all"
            )
        return None
