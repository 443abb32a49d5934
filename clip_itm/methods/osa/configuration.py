"""`head: {kind: osa}`: pair weights from one pass of a frozen estimator."""

from typing import Literal

from pydantic import Field, NonNegativeInt

from clip_itm.methods.robust.configuration import BoundedLossSection
from clip_itm.methods.section import warmup_conflict


class OsaHeadConfig(BoundedLossSection):
    """One-step anti-noise: pairs weighted by how far their cosine before training exceeds that of unrelated ones."""

    kind: Literal["osa"] = "osa"
    weights: Literal["intended", "released"] = Field(
        "intended",
        description="as the paper describes: beta from mismatched pairs, a constant weight for each pair; or as the "
        "released program does: beta from noise pixels and random tokens, weights relative to a batch's largest cosine",
    )
    normalise: Literal["mean", "none"] = Field(
        "mean",
        description="with weights intended: divide by the mean weight of the training pairs, so that learning rates "
        "mean the same as for the plain head; or not, as published: weights near 0.01",
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
