"""OSA: pairs weighted by their cosine under a frozen estimator, above that of unrelated ones (arXiv 2410.01944)."""

from torch import Tensor

from clip_itm.distributed import gather_constant
from clip_itm.methods.osa.weights import intended_weights, released_weights
from clip_itm.methods.robust.head import RobustHead


class OsaHead(RobustHead):
    """Cosines with a weight for each pair.

    Training sets `excess` [N], by how much the cosine of every training pair exceeds that of unrelated ones under the
    estimator (None: no weights); `unit`, the weight that counts as 1; and `right` bool [N], pairs that have the weight
    `full` because a person marked them right.
    """

    citation = (
        "@article{li2024osa, author={Li, Hao and Gu, Jiayang and Song, Jingkuan and Zhang, An and Gao, Lianli}, "
        "title={One-step Noisy Label Mitigation}, journal={arXiv preprint arXiv:2410.01944}, year={2024}}"
    )
    excess: Tensor | None = None
    unit: float = 1.0
    right: Tensor | None = None
    full: float = 1.0

    @classmethod
    def build(cls, config, widths, initial_logit_scale=None, initial_logit_bias=None) -> "OsaHead":
        return cls(config, initial_logit_scale)

    def weights(self, pair_ids: Tensor) -> Tensor | None:
        """Weights [b] of the local pairs; the same for any number of processes."""
        if self.excess is None:
            return None
        x = self.excess[pair_ids]
        if self.config.weights == "released":
            weights = released_weights(x, gather_constant(x).max())
        else:
            weights = intended_weights(x) / self.unit
        return weights if self.right is None else weights.masked_fill(self.right[pair_ids], self.full)

    def loss(self, images, texts, image_ids, pair_ids, pair_weight=None, caption_ids=None):
        weight = self.weights(pair_ids)
        if weight is None:
            return super().loss(images, texts, image_ids, pair_ids, pair_weight, caption_ids)
        own = weight if pair_weight is None else weight * pair_weight
        loss, logs = super().loss(images, texts, image_ids, pair_ids, own, caption_ids)
        return loss, logs | {"weight": weight.mean()}
