"""`head:` section of a recipe: the method, that is similarity and loss."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from clip_itm.heads.aahr.configuration import AahrHeadConfig
from clip_itm.heads.dive.configuration import DiveHeadConfig
from clip_itm.heads.polyloss.configuration import PolyLossHeadConfig
from clip_itm.heads.section import HeadSection
from clip_itm.heads.siglip.configuration import SiglipHeadConfig
from clip_itm.heads.similarity.configuration import CosineSection, SimilarityConfig
from clip_itm.heads.triplet.configuration import TripletHeadConfig


class ContrastiveSection(HeadSection):
    """What the heads around the contrastive loss have in common."""

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


class ClipHeadConfig(ContrastiveSection):
    """The plain contrastive head (InfoNCE in both directions)."""

    kind: Literal["clip"] = "clip"
    similarity: SimilarityConfig = CosineSection()


class NpcHeadConfig(ContrastiveSection):
    """Negative pre-aware matching: a trial step on every batch, judged by a memory of presumably clean pairs."""

    kind: Literal["npc"] = "npc"
    mode: Literal["intended", "released"] = Field(
        "intended",
        description="the method as described, or what the released program computes (one weight a batch, memory loss "
        "without gradient, trial gradient times 4)",
    )
    warmup_epochs: NonNegativeInt = Field(
        0, description="epochs of the plain loss before the bank is built; needed where a tower starts from scratch"
    )
    bank: str | None = Field(
        None, description="file of `clip-itm bank build`; default: built by the run with its own model"
    )
    rho: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.99, description="posterior above which a pair counts as clean (the released builder has 0.9)"
    )
    memory_coef: NonNegativeFloat = Field(1.0, description="weight of the memory loss")
    memory_grad: bool | None = Field(
        None, description="whether the memory loss trains the model; default: yes, in released mode no"
    )
    trial_grad_scale: PositiveFloat | None = Field(
        None, description="factor on the trial gradient; default: 1, in released mode 4"
    )
    trial_moments: Literal["own", "base", "none"] = Field(
        "own",
        description="the trial step's Adam moments: of its own, those of the real optimiser (read only), or none: "
        "a plain gradient step without decay",
    )
    weight_fn: Literal["tanh_step", "tanh", "ratio", "one"] = Field(
        "tanh_step",
        description="weight from the ratio r: tanh(r) below 1, else 1 (published); without its jump, "
        "tanh(r) / tanh(1); min(r, 1); or always 1, without a trial step",
    )

    def conflict(self, training) -> str | None:
        if self.warmup_epochs >= training.epochs:
            return (
                f"head.warmup_epochs: {self.warmup_epochs} epochs of warm-up leave none of the {training.epochs} "
                "(training.epochs) for NPC; lower it"
            )
        if self.bank is not None and self.warmup_epochs:
            return (
                "head.bank and head.warmup_epochs exclude each other: a given bank is used from the first step; "
                "leave one of them out"
            )
        return None

    @property
    def trains_memory(self) -> bool:
        grad = self.mode == "intended" if self.memory_grad is None else self.memory_grad
        return grad and self.memory_coef > 0

    @property
    def trial_scale(self) -> float:
        return self.trial_grad_scale or (1.0 if self.mode == "intended" else 4.0)


class CrclHeadConfig(HeadSection):
    """Active complementary loss with a self-refined label per pair."""

    kind: Literal["crcl"] = "crcl"
    similarity: SimilarityConfig = CosineSection()
    temperature: PositiveFloat = Field(
        0.05, description="fixed; zero-shot CLIP needs 0.01 to 0.02, towers from scratch 0.05"
    )
    complementary_weight: NonNegativeFloat = Field(5.0, description="lambda, weight of the complementary term")
    label_momentum: Annotated[float, Field(ge=0, le=1)] = Field(
        0.8, description="share of the old label in a refined one"
    )
    label_threshold: Annotated[float, Field(ge=0, lt=1)] = Field(0.1, description="labels below it are cut to 0")
    store_filtered: bool = Field(True, description="keep the cut label (published: 0 is sticky), or the uncut one")
    frozen_epochs: NonNegativeInt = Field(2, description="epochs at the start of every piece that leave labels alone")
    schedules: tuple[PositiveInt, ...] | None = Field(
        None,
        description="epochs of each piece beside the frozen ones; every piece begins with the initial weights "
        "and keeps the labels. training.epochs is the sum of all. Default: one piece",
    )
    initial_labels: Literal["one", "model"] = Field(
        "one", description="labels at the start: 1, or the matching probability under the pretrained model"
    )
    softmax_set: Annotated[int, Field(ge=2)] | None = Field(
        None, description="candidates of a pair, so that probabilities mean the same in larger batches; default: all"
    )
    same_photo: Literal["negative", "mask"] = Field(
        "mask", description="another caption of the photo in a batch: a negative (as published), or left out"
    )

    def conflict(self, training) -> str | None:
        if self.softmax_set is not None and training.batch_size % self.softmax_set:
            return (
                f"head.softmax_set: {self.softmax_set} does not divide the batch of {training.batch_size} pairs "
                "(training.batch_size)"
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


HeadConfig = Annotated[
    ClipHeadConfig
    | NpcHeadConfig
    | CrclHeadConfig
    | DiveHeadConfig
    | AahrHeadConfig
    | PolyLossHeadConfig
    | TripletHeadConfig
    | SiglipHeadConfig,
    Field(discriminator="kind"),
]
