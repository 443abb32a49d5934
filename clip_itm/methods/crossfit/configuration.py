"""`head: {kind: crossfit}`: weights from folds that judge each other's pairs, then the plain loss."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from clip_itm.methods.robust.configuration import BoundedLossSection
from clip_itm.similarity.configuration import CosineSection, SimilarityConfig

Loss = Literal["infonce", "gce", "rince", "sce", "tal"]
OF_FOLDS = ("folds", "fold_epochs", "fold_loss", "siblings", "candidates")


class CrossfitHeadConfig(BoundedLossSection):
    """Pairs weighted by what a model that has not seen them believes; the share of wrong ones is estimated."""

    kind: Literal["crossfit"] = "crossfit"
    similarity: SimilarityConfig = CosineSection()
    folds: NonNegativeInt = Field(
        2, description="parts of the photos, each judged by a model of the others; 0: the pretrained model judges all"
    )
    fold_epochs: PositiveInt | None = Field(
        None, description="epochs of a fold's model over its own pairs; default: half of training.epochs, rounded up"
    )
    fold_loss: Loss = Field("gce", description="loss of the models that judge")
    estimate: Literal["made", "mixture", "truth"] = Field(
        "made",
        description="weights from made mismatches; for comparison: two Gaussians on the losses (doubted pairs are left "
        "out), or the truth of drawn noise (the best that any estimate can do)",
    )
    siblings: bool = Field(True, description="use the other captions of a photo as evidence, if it has several")
    candidates: Annotated[int, Field(ge=2)] | None = Field(
        None,
        description="compare a pair with this many photos and captions, drawn at random, if the similarity is too slow "
        "for all of them (the default)",
    )
    weights: str | None = Field(
        None,
        min_length=1,
        description="a clean_probability.npz of these pairs (from an audit or a run), instead of folds",
    )
    smallest_weight: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.05, description="pairs are left out if their weight is no greater"
    )
    loss: Literal["auto", "infonce", "gce", "rince", "sce", "tal", "mix"] = Field(
        "auto",
        description="loss of the weighted pairs; auto: infonce, or gce if more than largest_residual of the kept pairs "
        "is expected to be wrong (under a weak judge: may be wrong); mix: w infonce + (1 - w) gce",
    )
    largest_residual: Annotated[float, Field(ge=0, le=1)] = Field(
        0.15, description="with loss auto: infonce up to this expected fraction of wrong pairs, by weight"
    )

    @property
    def loss_names(self) -> tuple[str, ...]:
        last = {"auto": ("infonce", "gce"), "mix": ("infonce", "gce")}.get(self.loss, (self.loss,))
        return (self.fold_loss, *last) if self.trains_folds else last

    @property
    def trains_folds(self) -> bool:
        """Whether models of folds judge the pairs."""
        return self.folds > 0 and self.estimate != "truth" and self.weights is None

    def epochs_of_a_fold(self, epochs: int) -> int:
        """`fold_epochs`, or half of the `epochs` of the run."""
        return self.fold_epochs or -(-epochs // 2)

    def conflict(self, training) -> str | None:
        if self.folds == 1:
            return "head.folds: 1 leaves no other photos to learn from; write 2 or more, or 0 for the pretrained model"
        reasons = {
            "head.weights names the weights": (self.weights is not None, (*OF_FOLDS, "estimate")),
            "head.estimate: truth judges nothing": (self.estimate == "truth", OF_FOLDS),
            "head.estimate: mixture reads losses alone": (self.estimate == "mixture", ("siblings", "candidates")),
            "head.folds: 0 trains no models": (self.folds == 0, ("fold_epochs", "fold_loss")),
            f"head.loss is {self.loss}": (self.loss != "auto", ("largest_residual",)),
        }
        for reason, (holds, keys) in reasons.items():
            for key in keys if holds else ():
                if getattr(self, key) != type(self).model_fields[key].default:
                    return f"head.{key} does nothing: {reason}; leave it out"
        return super().conflict(training)
