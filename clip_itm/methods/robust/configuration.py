"""`head: {kind: robust}`: a bounded contrastive loss; also the options of these losses for other methods."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from clip_itm.methods.section import ContrastiveSection
from clip_itm.similarity.configuration import CosineSection, SimilarityConfig

FIXED_TEMPERATURE = ("rince", "tal")  # both fall with the temperature, whatever the model knows
TAL_TEMPERATURE = 0.015  # Qin et al., CVPR 2024, section 4.1
LARGEST_EXPONENT = 40.0  # AdamW keeps squares of gradients: exp(2 * 40) is still a float32
FIRST_Q = 0.3  # of q: auto, before there is an estimate
OPTIONS_OF = {
    "q": ("gce", "rince"),
    "rince_lambda": ("rince",),
    "sce_cross_entropy": ("sce",),
    "sce_reverse": ("sce",),
    "tal_margin": ("tal",),
}


class BoundedLossSection(ContrastiveSection):
    """The options of the bounded losses; a subclass has a key `loss` that names its own."""

    temperature: PositiveFloat | None = Field(
        None,
        description="temperature at the start, fixed with rince and tal; default: 0.015 with tal, else the pretrained "
        "one, 0.07 from scratch",
    )
    q: Annotated[float, Field(gt=0, le=1)] = Field(
        0.3, description="gce, rince: near 0 like the plain loss; at 1, improbable pairs pull least"
    )
    rince_lambda: Annotated[float, Field(gt=0, le=1)] = Field(
        0.025, description="rince: weight of the candidates relative to the pair itself"
    )
    sce_cross_entropy: NonNegativeFloat = Field(0.1, description="sce: weight a of the plain loss, which is unbounded")
    sce_reverse: NonNegativeFloat = Field(1.0, description="sce: weight b of the reverse cross-entropy, 4 (1 - p)")
    tal_margin: NonNegativeFloat = Field(0.1, description="tal: a pair whose similarity leads by this costs nothing")

    @property
    def loss_names(self) -> tuple[str, ...]:
        """The losses that training uses, by name."""
        return (self.loss,)

    @property
    def learns_temperature(self) -> bool:
        """Whether the temperature trains: not if one of the losses falls with the temperature alone."""
        return not set(self.loss_names) & set(FIXED_TEMPERATURE)

    def conflict(self, training) -> str | None:
        for key, losses in OPTIONS_OF.items():
            changed = getattr(self, key) != type(self).model_fields[key].default
            if changed and not set(losses) & set(self.loss_names):
                return f"head.{key} does nothing with the loss {' or '.join(self.loss_names)}; leave it out"
        if "sce" in self.loss_names and not self.sce_cross_entropy + self.sce_reverse:
            return "head.sce_cross_entropy and head.sce_reverse are both 0, which leaves no loss; raise one"
        return None if self.temperature is None else self.overflow(1 / self.temperature)

    def caution(self, training) -> str | None:
        repelled = self.rince_lambda * training.contrastive_batch
        if "rince" not in self.loss_names or repelled <= 1:
            return None
        return (
            f"head.rince_lambda {self.rince_lambda:g} times training.{training.names_of_batch} "
            f"{training.contrastive_batch:,} is {repelled:.3g}: above 1, two towers that do not know each other "
            "yet soon put all photos at one point and all captions at the opposite one, and stay there; take at most "
            "1 / batch, "
            f"{1 / training.contrastive_batch:.2g}"
        )

    def overflow(self, scale: float) -> str | None:
        """A sentence that says why exponentials of rince would overflow under 1 / temperature `scale`, else None."""
        if "rince" not in self.loss_names or round(self.q * scale, 3) <= LARGEST_EXPONENT:
            return None
        return (
            "head.q: gradients of rince grow like exp(q / temperature) and would overflow, because "
            f"{self.q:g} / {1 / scale:.3g} is above {LARGEST_EXPONENT:g}; lower head.q, or raise head.temperature"
        )


class RobustHeadConfig(BoundedLossSection):
    """A bounded contrastive loss: pairs that the model finds improbable pull less."""

    kind: Literal["robust"] = "robust"
    similarity: SimilarityConfig = CosineSection()
    loss: Literal["gce", "rince", "sce", "tal"] = Field("gce", description="the bounded loss")
    q: Annotated[float, Field(gt=0, le=1)] | Literal["auto"] = Field(  # type: ignore[assignment]
        0.3,
        description="gce, rince: near 0 like the plain loss; at 1, improbable pairs pull least; auto (gce): 0.75 times "
        "the share of wrong captions as the run estimates it, between 0.05 and 0.7",
    )
    q_epochs: NonNegativeInt = Field(
        1, description="with q: auto, epochs at q 0.3 before the estimate; 0: estimate before any training"
    )

    def conflict(self, training) -> str | None:
        if self.q == "auto" and self.loss == "rince":
            return "head.q: auto is a rule for gce; write a number for rince"
        if self.q != "auto" and self.q_epochs != 1:
            return f"head.q_epochs does nothing with head.q: {self.q:g}; leave it out, or write head.q: auto"
        if self.q == "auto" and self.q_epochs >= training.epochs:
            return (
                f"head.q_epochs: {self.q_epochs} epochs with q {FIRST_Q:g} leave none of the {training.epochs} "
                "(training.epochs) for the estimated one; lower it"
            )
        return super().conflict(training)
