"""Similarity attention filtration (Diao et al., AAAI 2021; docs/papers/crcl.md 6.8).

g_n = sigmoid(norm(w z_n + b))          S = sigmoid(w' l2(sum_n g_n z_n / sum_n g_n) + b')
"""

import torch
from torch import Tensor, nn

from clip_itm.backbones.features import FeatureWidths
from clip_itm.distributed import gather_constant
from clip_itm.similarity.configuration import SafSection
from clip_itm.similarity.sgraf import GraphSimilarity
from clip_itm.similarity.tokens import EPSILON, l2, linear


class CaptionNorm(nn.BatchNorm1d):
    """A batch norm of one channel whose batch is a caption with all images (docs/papers/crcl.md 6.10)."""

    # in torch they may be None, if statistics are not tracked
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def __init__(self):
        super().__init__(1)

    def forward(  # type: ignore[override]
        self, values: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised `values` [Ni, Nt, N], and mean and unbiased variance [Nt] of each caption, over images and nodes.

        In evaluation these are the running ones. `mask` bool [Nt, N]: False at padding.
        """
        if self.training:
            mean, variance, unbiased = caption_statistics(values, mask)
        else:
            mean, variance = self.running_mean.expand(len(mask)), self.running_var.expand(len(mask))
            unbiased = variance
        normalized = (values - mean[:, None]) * (variance[:, None] + self.eps).rsqrt()
        return normalized * self.weight + self.bias, mean, unbiased

    @torch.no_grad()
    def track(self, means: Tensor, variances: Tensor) -> None:
        """Update the running statistics as if the captions [Nt] of all processes came one by one, in their order."""
        means, variances = gather_constant(means.detach()), gather_constant(variances.detach())
        self.running_mean.copy_(running_value(self.running_mean, means, self.momentum))
        self.running_var.copy_(running_value(self.running_var, variances, self.momentum))
        self.num_batches_tracked += len(means)


def caption_statistics(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and unbiased variance [Nt] of `values` [Ni, Nt, N] over images and the nodes in `mask` [Nt, N]."""
    count = len(values) * mask.sum(dim=-1)
    mean = (values * mask).sum(dim=(0, 2)) / count
    squares = ((values - mean[:, None]) * mask).square().sum(dim=(0, 2))
    return mean, squares / count, squares / (count - 1).clamp(min=1)


def running_value(start: Tensor, values: Tensor, momentum: float) -> Tensor:
    """r <- (1 - momentum) r + momentum x, for every x in `values` [T] in turn, beginning with r = `start` [1]."""
    ages = torch.arange(len(values) - 1, -1, -1, dtype=values.dtype, device=values.device)
    kept = 1 - momentum
    return kept ** len(values) * start + momentum * (kept**ages * values).sum()


class Saf(GraphSimilarity):
    """Similarity attention filtration: gates weight the similarity vectors of a pair, their mean gives the score."""

    config: SafSection

    def __init__(self, config: SafSection, widths: FeatureWidths):
        super().__init__(config, widths)
        self.gate, self.gate_norm = linear(config.similarity_dim, 1), CaptionNorm()

    def forward(self, images: Tensor, texts: Tensor) -> Tensor:
        """Scores [Ni, Nt] in (0, 1); in training also updates the running statistics of the gates."""
        scores, means, variances = zip(*self.blocks(images, texts), strict=True)
        if self.training:  # here, not where a block is computed: that may happen twice
            self.gate_norm.track(torch.cat(means), torch.cat(variances))
        return torch.cat(scores, dim=1)

    def reason(self, nodes: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores [Ni, Nt], and mean and variance [Nt] for the running statistics, of nodes [Ni, Nt, 1 + W, K]."""
        logits, means, variances = self.gate_norm(self.gate(nodes)[..., 0], mask)
        gates = logits.sigmoid() * mask
        weights = gates / (gates.sum(dim=-1, keepdim=True) + EPSILON)
        filtered = l2((weights[..., None, :] @ nodes)[..., 0, :])
        return self.score(filtered)[..., 0].sigmoid(), means, variances
