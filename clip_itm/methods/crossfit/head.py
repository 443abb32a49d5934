"""The head of crossfit: a bounded loss while folds are trained, then the plain loss (or any other) with weights."""

from torch import Tensor

from clip_itm.methods.robust.head import RobustHead


class CrossfitHead(RobustHead):
    """A similarity with a learned temperature.

    Training sets `current_loss`, the name of the loss in use, and `belief` [N], the probability that a training pair is
    right (None: all are believed), which is the weight of its loss; "mix" is w infonce + (1 - w) gce.
    """

    citation = (
        "@article{efron2001empirical, author={Efron, Bradley and Tibshirani, Robert and Storey, John D. and Tusher, "
        "Virginia}, title={Empirical {B}ayes Analysis of a Microarray Experiment}, journal={Journal of the American "
        "Statistical Association}, volume={96}, year={2001}}"
    )

    current_loss: str = "infonce"
    belief: Tensor | None = None

    def losses(self, images: Tensor, texts: Tensor, image_ids: Tensor, caption_ids: Tensor | None = None) -> Tensor:
        loss = "infonce" if self.current_loss == "mix" else self.current_loss
        return self.losses_of(loss, images, texts, image_ids, caption_ids)

    def loss(self, images, texts, image_ids, pair_ids, pair_weight=None, caption_ids=None):
        losses = self.losses(images, texts, image_ids, caption_ids)
        if self.belief is not None:
            weight = self.belief[pair_ids]
            losses = weight * losses
            if self.current_loss == "mix":
                losses = losses + (1 - weight) * self.losses_of("gce", images, texts, image_ids, caption_ids)
        if pair_weight is not None:
            losses = pair_weight * losses
        return losses.mean(), {"logit_scale": self.logit_scale.detach().exp()}
