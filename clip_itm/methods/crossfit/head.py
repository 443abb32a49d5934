"""The head of crossfit: a bounded loss while folds are trained, then the plain loss (or any other) with weights."""

from torch import Tensor

from clip_itm.methods.robust.head import RobustHead


class CrossfitHead(RobustHead):
    """A similarity with a learned temperature. `current_loss`: the name of the loss in use, which the trainer sets."""

    citation = (
        "@article{efron2001empirical, author={Efron, Bradley and Tibshirani, Robert and Storey, John D. and Tusher, "
        "Virginia}, title={Empirical {B}ayes Analysis of a Microarray Experiment}, journal={Journal of the American "
        "Statistical Association}, volume={96}, year={2001}}"
    )

    current_loss: str = "infonce"

    def losses(self, images: Tensor, texts: Tensor, image_ids: Tensor) -> Tensor:
        return self.losses_of(self.current_loss, images, texts, image_ids)

    def loss(self, images, texts, image_ids, pair_ids, pair_weight=None):
        """See `Head.loss`. "mix" is w infonce + (1 - w) gce, for pairs of weight w."""
        if self.current_loss != "mix":
            return super().loss(images, texts, image_ids, pair_ids, pair_weight)
        losses = self.losses_of("infonce", images, texts, image_ids)
        if pair_weight is not None:
            bounded = self.losses_of("gce", images, texts, image_ids)
            losses = pair_weight * losses + (1 - pair_weight) * bounded
        return losses.mean(), {"logit_scale": self.logit_scale.detach().exp()}
