"""`head: {kind: osa}`: weights of the pairs from one look of a frozen estimator."""

from typing import Literal

from pydantic import Field, NonNegativeInt

from clip_itm.methods.robust.configuration import BoundedLossSection
from clip_itm.methods.section import warmup_conflict


class OsaHeadConfig(BoundedLossSection):
    """One-step anti-noise: pairs weigh what their cosine under the model before training exceeds that of strangers."""

    kind: Literal["osa"] = "osa"
    weights: Literal["intended", "released"] = Field(
        "intended",
        description="as described: beta from mismatched pairs, a constant weight for each pair; or what the released "
        "program computes: beta from noise pixels and random tokens, weights relative to the largest cosine of a batch",
    )
    normalise: Literal["mean", "none"] = Field(
        "mean",
        description="intended: divide by the mean weight of the training pairs, so that learning rates mean what they "
        "mean for the plain head; or not, as published: weights near 0.01",
    )
    warmup_epochs: NonNegativeInt = Field(
        0, description="epochs without weights, after which the model is the estimator; needed from scratch"
    )
    loss: Literal["infonce", "gce", "rince", "sce", "tal"] = Field(
        "infonce", description="what is weighted: the plain loss, or a bounded one"
    )

    def conflict(self, training) -> str | None:
        if problem := warmup_conflict(self.warmup_epochs, training, "OSA"):
            return problem
        if self.weights == "released" and self.normalise == "none":
            return "head.normalise: weights of released are relative to each batch, and none does nothing; leave it out"
        return super().conflict(training)
