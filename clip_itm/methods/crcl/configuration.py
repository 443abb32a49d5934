"""`head:` section of CRCL."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from clip_itm.methods.section import HeadSection, MaskedCaption
from clip_itm.similarity.configuration import CosineSection, SimilarityConfig


class CrclHeadConfig(HeadSection):
    """Active complementary loss with a self-refined label per pair."""

    later_keys: ClassVar[tuple[str, ...]] = ("weights",)

    kind: Literal["crcl"] = "crcl"
    similarity: SimilarityConfig = CosineSection()
    temperature: PositiveFloat = Field(
        0.05, description="fixed; zero-shot CLIP needs 0.01 to 0.02, towers from scratch 0.05"
    )
    complementary_weight: NonNegativeFloat = Field(5.0, description="lambda, weight of the complementary term")
    label_momentum: Annotated[float, Field(ge=0, le=1)] = Field(
        0.8, description="weight of the old label in a refined one"
    )
    label_threshold: Annotated[float, Field(ge=0, lt=1)] = Field(0.1, description="labels below it are cut to 0")
    store_filtered: bool = Field(True, description="store the cut label (published: 0 is sticky), or the uncut one")
    frozen_epochs: NonNegativeInt = Field(2, description="epochs at the start of every piece that leave labels alone")
    schedules: tuple[PositiveInt, ...] | None = Field(
        None,
        description="epochs of each piece besides the frozen ones; every piece begins with the initial weights "
        "and keeps the labels. training.epochs is the sum of all. Default: one piece",
    )
    initial_labels: Literal["one", "model", "crossfit"] = Field(
        "one",
        description="labels at the start: 1, matching probabilities under the pretrained model, or those in weights",
    )
    weights: str | None = Field(
        None,
        min_length=1,
        description="for initial_labels: crossfit, a clean_probability.npz of these pairs (from a crossfit run or an "
        "audit)",
    )
    softmax_set: Annotated[int, Field(ge=2)] | None = Field(
        None, description="candidates per pair, so that probabilities mean the same in larger batches; default: all"
    )
    same_image: Literal["negative", "mask"] = Field(
        "mask", description="another caption of the photo in a batch: a negative (as published), or left out"
    )
    same_caption: MaskedCaption = "negative"

    def conflict(self, training) -> str | None:
        if self.weights is None and self.initial_labels == "crossfit":
            return (
                "head.initial_labels: crossfit reads them from a file: name the clean_probability.npz of a crossfit "
                "run or of an audit in head.weights"
            )
        if self.weights is not None and self.initial_labels != "crossfit":
            return (
                f"head.weights does nothing with head.initial_labels: {self.initial_labels}; write crossfit there, or "
                "leave it out"
            )
        if self.softmax_set is not None and training.contrastive_batch % self.softmax_set:
            return (
                f"head.softmax_set: {self.softmax_set} does not divide the batch of {training.contrastive_batch} pairs "
                f"(training.{training.names_of_batch})"
            )
        expected = None if self.schedules is None else sum(self.schedules) + self.frozen_epochs * len(self.schedules)
        if expected not in (None, training.epochs):
            return (
                f"training.epochs: {training.epochs}, but the pieces {list(self.schedules)} with {self.frozen_epochs} "
                f"frozen epochs each (head.schedules, head.frozen_epochs) make {expected}; write training.epochs: "
                f"{expected}"
            )
        if expected is None and self.frozen_epochs >= training.epochs:
            return (
                f"head.frozen_epochs: {self.frozen_epochs} frozen epochs leave none of the {training.epochs} "
                "(training.epochs) to refine labels in; lower it"
            )
        return None
