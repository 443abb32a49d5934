"""`head:` section of NPC."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from clip_itm.methods.section import ContrastiveSection, warmup_conflict


class NpcHeadConfig(ContrastiveSection):
    """Negative pre-aware matching: a trial step on every batch, judged by a memory of presumably clean pairs."""

    later_keys: ClassVar[tuple[str, ...]] = ("weights",)

    kind: Literal["npc"] = "npc"
    mode: Literal["intended", "released"] = Field(
        "intended",
        description="the method as the paper describes it, or as released (one weight per batch, memory loss without "
        "gradient, trial gradient times 4)",
    )
    warmup_epochs: NonNegativeInt = Field(
        0, description="epochs of the plain loss before the bank is built; needed where a tower starts from scratch"
    )
    bank: str | None = Field(
        None, description="file of `clip-itm bank build`; default: built by the run with its own model"
    )
    weights: str | None = Field(
        None,
        min_length=1,
        description="a clean_probability.npz of these pairs (from a crossfit run or an audit): the bank's clean pairs "
        "are those with a weight above rho, whatever their losses",
    )
    rho: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.99, description="posterior above which a pair counts as clean (the released builder uses 0.9)"
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
        description="the trial step's Adam moments: its own, those of the real optimiser (read only), or none: a plain "
        "gradient step without decay",
    )
    weight_fn: Literal["tanh_step", "tanh", "ratio", "one"] = Field(
        "tanh_step",
        description="weight from the ratio r: tanh(r) below 1, else 1 (published); without its jump, "
        "tanh(r) / tanh(1); min(r, 1); or always 1, without a trial step",
    )

    def conflict(self, training) -> str | None:
        if problem := warmup_conflict(self.warmup_epochs, training, "NPC"):
            return problem
        if self.bank is not None and self.warmup_epochs:
            return (
                "head.bank and head.warmup_epochs cannot be combined: a given bank is used from the first step; "
                "leave one of them out"
            )
        if self.bank is not None and self.weights is not None:
            return (
                "head.bank and head.weights cannot be combined: weights say which pairs a bank is built of, and "
                "head.bank names one that is built; leave one of them out"
            )
        return None

    @property
    def trains_memory(self) -> bool:
        """Whether the memory loss has a gradient."""
        grad = self.mode == "intended" if self.memory_grad is None else self.memory_grad
        return grad and self.memory_coef > 0

    @property
    def trial_scale(self) -> float:
        """The factor on the trial gradient."""
        return self.trial_grad_scale or (1.0 if self.mode == "intended" else 4.0)
