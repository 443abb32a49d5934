"""The sigmoid loss (Zhai et al., ICCV 2023, section 3.2).

z[i, j] = 1 for the pairs, -1 for all others
loss    = -(1 / N) sum_ij log sigmoid(z[i, j] (exp(logit_scale) S[i, j] + logit_bias))
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_itm.methods.base import Head
from clip_itm.methods.clip.head import first_logit_scale
from clip_itm.methods.scores import both_directions
from clip_itm.methods.siglip.configuration import SiglipHeadConfig
from clip_itm.similarity.base import Similarity
from clip_itm.similarity.build import build_similarity


def sigmoid_losses(
    logits: Tensor,
    targets: Tensor,
    same_image: Tensor,
    mode: str,
    equal: Tensor | None = None,
    caption_mode: str = "negative",
) -> Tensor:
    """Loss [b] of every row, in one direction: its columns as yes-or-no questions, added up.

    `logits` [b, B] are scaled similarities plus bias; `targets` int64 [b] is the column of the row's own pair;
    `same_image` bool [b, B] marks the columns of the row's image, its own pair included. `mode` says whether its other
    pairs count as "negative" or "positive", or not at all ("mask"); `caption_mode` does the same for the columns
    `equal` bool [b, B] (see `same_caption`).

    Example:
        >>> logits = torch.tensor([[2.0, -2.0], [-2.0, 2.0]])
        >>> sigmoid_losses(logits, torch.arange(2), torch.eye(2, dtype=torch.bool), mode="negative")
        tensor([0.2539, 0.2539])
    """
    own = torch.zeros_like(same_image).scatter(1, targets[:, None], True)
    right = same_image if mode == "positive" else own
    if equal is not None and caption_mode == "positive":
        right = right | equal
    losses = -F.logsigmoid(torch.where(right, logits, -logits))
    if mode == "mask":
        losses = losses.masked_fill(same_image & ~own, 0)
    if equal is not None and caption_mode == "mask":
        losses = losses.masked_fill(equal, 0)
    return losses.sum(dim=1)


class SiglipHead(Head):
    """A similarity with a learned scale and bias, trained by the sigmoid loss.

    Both start at `config`, else at the pretrained values, else at exp(logit_scale) = 10 and -10 as published.
    """

    citation = (
        "@inproceedings{zhai2023siglip, author={Zhai, Xiaohua and Mustafa, Basil and Kolesnikov, Alexander and "
        "Beyer, Lucas}, title={Sigmoid Loss for Language Image Pre-Training}, booktitle={ICCV}, year={2023}}"
    )

    @classmethod
    def build(cls, config, widths, initial_logit_scale=None, initial_logit_bias=None) -> "SiglipHead":
        return cls(config, initial_logit_scale, initial_logit_bias, build_similarity(config.similarity, widths))

    def __init__(
        self,
        config: SiglipHeadConfig,
        initial_logit_scale: float | None = None,
        initial_logit_bias: float | None = None,
        similarity: Similarity | None = None,
    ):
        super().__init__(similarity)
        self.config = config
        if config.bias is not None:
            initial_logit_bias = config.bias
        elif initial_logit_bias is None:
            initial_logit_bias = -10.0
        self.logit_scale = first_logit_scale(config.temperature, initial_logit_scale, 0.1)
        self.logit_bias = nn.Parameter(torch.tensor(float(initial_logit_bias)))

    def scale(self) -> Tensor:
        return self.logit_scale.exp()

    def bias(self) -> Tensor:
        return self.logit_bias

    def loss(self, images, texts, image_ids, pair_ids, pair_weight=None, caption_ids=None):
        """See `Head.loss`. Each entry of S counts half in its row and half in its column: weights act on both."""
        mode, caption_mode = self.config.same_image, self.config.same_caption

        def of_rows(scores: Tensor, targets: Tensor, siblings: Tensor, equal: Tensor | None) -> Tensor:
            logits = self.scale() * scores + self.logit_bias
            return sigmoid_losses(logits, targets, siblings, mode, equal, caption_mode)

        losses = both_directions(of_rows, self.similarity, images, texts, image_ids, caption_ids, caption_mode)
        if pair_weight is not None:
            losses = pair_weight * losses
        logs = {"logit_scale": self.scale().detach(), "logit_bias": self.logit_bias.detach().clone()}
        return losses.mean(), logs
