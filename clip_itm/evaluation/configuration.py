"""`evaluation:` section of a recipe."""

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from clip_itm.section import Section

ProtocolName = Literal["all", "flickr-1k", "coco-1k", "coco-5k", "cxc", "eccv"]  # as in `evaluation/protocols.py`
MOST_RESAMPLES = 100_000


def require_own(protocols) -> None:
    """ValueError for protocols under which equal captions cannot count as right."""
    if published := [name for name in protocols if name != "all"]:
        raise ValueError(
            f"same_caption: under the protocol {' and '.join(published)}, as published, only a caption's own photo is "
            "right; use the protocol all alone, or leave evaluation.same_caption out"
        )


class EvaluationSection(Section):
    """How recall is computed: on val at every evaluation during training, and on the final split."""

    split: Literal["test", "val"] = Field("test", description="split of the final table; val if a source has no test")
    protocols: tuple[ProtocolName, ...] = Field(
        ("all",), min_length=1, description="cxc and eccv: the COCO test split, with the extra eccv"
    )
    batch_size: PositiveInt = Field(128, description="photos or captions encoded at once")
    same_caption: bool = Field(
        False,
        description="protocol all: photos of all equal captions are right for a caption, on val, too; tables say so",
    )
    bootstrap: NonNegativeInt = Field(1000, description="resamples for the 95 % intervals; 0: none")

    @model_validator(mode="after")
    def _published_figures_count_one_photo(self):
        if self.same_caption:
            require_own(self.protocols)
        return self

    @field_validator("bootstrap")
    @classmethod
    def _enough_is_enough(cls, value):
        if value > MOST_RESAMPLES:
            raise ValueError(f"more than {MOST_RESAMPLES:,} resamples move no interval and take hours; 1,000 are usual")
        return value
