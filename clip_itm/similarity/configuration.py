"""`head.similarity:` section of a recipe: how an image and a caption are compared."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from clip_itm.section import Section


class CosineSection(Section):
    """Cosine of the pooled features."""

    kind: Literal["cosine"] = "cosine"


class TokenSection(Section):
    """What similarities of token grids have in common."""

    token_dim: PositiveInt | None = Field(
        None, description="width of new linear layers on tokens; default: tokens as the backbone gives them"
    )
    max_words: PositiveInt = Field(
        32, description="positions of a caption that are compared; its embedding has as many vectors"
    )


class ScanSection(TokenSection):
    """Stacked cross attention between regions and words."""

    kind: Literal["scan"] = "scan"
    direction: Literal["t2i", "i2t"] = Field("t2i", description="words attend to regions, or regions to words")
    normalization: Literal["clipped_l2norm", "l2norm", "clipped_l1norm", "l1norm", "clipped", "no_norm", "softmax"] = (
        Field("clipped_l2norm", description="of the scores, over those that attend (raw_feature_norm)")
    )
    softmax_scale: PositiveFloat | None = Field(
        None, description="of the attention (lambda_softmax); default: 9 for t2i, 4 for i2t"
    )
    aggregation: Literal["Mean", "Sum", "Max", "LogSumExp"] = Field(
        "Mean", description="from relevances to a score (agg_func); Sum and LogSumExp exceed 1"
    )
    lse_scale: PositiveFloat | None = Field(None, description="of LogSumExp (lambda_lse); default: 6")

    @model_validator(mode="after")
    def _scale_needs_log_sum_exp(self):
        if self.lse_scale is not None and self.aggregation != "LogSumExp":
            raise ValueError(
                f"lse_scale does nothing with aggregation {self.aggregation}: leave it out, or use LogSumExp"
            )
        return self

    @property
    def attention_multiplier(self) -> float:
        """`softmax_scale`, or the published one of the direction."""
        return self.softmax_scale or {"t2i": 9.0, "i2t": 4.0}[self.direction]

    @property
    def lse_multiplier(self) -> float:
        """`lse_scale`, or the published 6."""
        return self.lse_scale or 6.0


class GraphSection(TokenSection):
    """What SAF and SGR have in common."""

    regions: PositiveInt = Field(
        36, description="tokens of a photo: 36 published regions, 49 patches of ViT-B/32, positions of a CNN's grid"
    )
    similarity_dim: PositiveInt = Field(256, description="width of the similarity vectors")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.4, description="in the layers of global vectors")


class SafSection(GraphSection):
    """Similarity attention filtration (Diao et al., AAAI 2021)."""

    kind: Literal["saf"] = "saf"


class SgrSection(GraphSection):
    """Similarity graph reasoning (Diao et al., AAAI 2021)."""

    kind: Literal["sgr"] = "sgr"
    graph_steps: PositiveInt = Field(3, le=1000, description="rounds of reasoning over the graph")


SimilarityConfig = Annotated[CosineSection | ScanSection | SafSection | SgrSection, Field(discriminator="kind")]
