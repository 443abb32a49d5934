"""`evaluation:` section of a recipe."""

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator

from clip_itm.section import Section

ProtocolName = Literal["all", "flickr-1k", "coco-1k", "coco-5k", "cxc", "eccv"]  # as in `evaluation/protocols.py`
MOST_RESAMPLES = 100_000


class EvaluationSection(Section):
    """How recall is computed: on val at every evaluation during training, and on the final split."""

    split: Literal["test", "val"] = Field(
        "test", description="split of the final table; val where a source has no test"
    )
    protocols: tuple[ProtocolName, ...] = Field(
        ("all",), min_length=1, description="cxc and eccv: the COCO test split, with the extra eccv"
    )
    batch_size: PositiveInt = 128
    bootstrap: NonNegativeInt = Field(1000, description="resamples for the 95 % intervals; 0: none")

    @field_validator("bootstrap")
    @classmethod
    def _enough_is_enough(cls, value):
        if value > MOST_RESAMPLES:
            raise ValueError(f"more than {MOST_RESAMPLES:,} resamples move no interval and take hours; 1,000 are usual")
        return value
