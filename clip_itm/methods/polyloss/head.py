"""PolyLoss on any similarity (Wei et al., CVPR 2020; docs/papers/polyloss.md)."""

import torch
from torch import Tensor, nn

from clip_itm.distributed import gather_constant
from clip_itm.methods.base import Head
from clip_itm.methods.clip.head import contrastive_cross_entropy
from clip_itm.methods.polyloss.configuration import PolyLossHeadConfig
from clip_itm.methods.polyloss.loss import Anchors, Weighting, polynomial_losses
from clip_itm.methods.scores import global_scores, local_targets, not_negatives
from clip_itm.similarity.base import Similarity

MAPPED_NEGATIVES, MAPPED_POSITIVES = 0.1, 0.5  # docs/papers/polyloss.md 11
LARGEST_SLOPE = 10.0  # for positives and negatives that hardly differ, as in an untrained model


class ScoreMap(nn.Module):
    """S' = slope S + shift, learned; `is_set` says whether a batch has set it, and is saved with the weights."""

    def __init__(self):
        super().__init__()
        self.slope, self.shift = nn.Parameter(torch.ones(())), nn.Parameter(torch.zeros(()))
        self.register_buffer("is_set", torch.tensor(False))

    def forward(self, scores: Tensor) -> Tensor:
        return self.slope * scores + self.shift

    @torch.no_grad()
    def set_from(self, rows: Tensor, targets: Tensor, siblings: Tensor) -> None:
        """On the first call, map the mean positive of the global batch to 0.5 and the mean negative to 0.1.

        `rows` [b, B], `targets` int64 [b], `siblings` bool [b, B]: see `polynomial_losses`. The map is the same on
        every process, because all of them add up the same numbers in the same order.
        """
        positives, negatives = global_means(rows, targets, siblings)
        slope = ((MAPPED_POSITIVES - MAPPED_NEGATIVES) / (positives - negatives).clamp(min=0)).clamp(max=LARGEST_SLOPE)
        self.slope.copy_(torch.where(self.is_set, self.slope, slope))
        self.shift.copy_(torch.where(self.is_set, self.shift, MAPPED_POSITIVES - slope * positives))
        self.is_set.fill_(True)


def global_means(rows: Tensor, targets: Tensor, siblings: Tensor) -> tuple[Tensor, Tensor]:
    """Mean score of the positives and of the negatives of the global batch; arguments as in `polynomial_losses`."""
    negative = ~siblings
    local = torch.stack(
        [
            rows.gather(1, targets[:, None]).sum(),
            torch.tensor(len(rows), dtype=rows.dtype, device=rows.device),
            (rows * negative).sum(),
            negative.sum().to(rows.dtype),
        ]
    )
    positives, pairs, negatives, others = gather_constant(local[None]).sum(dim=0)
    return positives / pairs, negatives / others.clamp(min=1)


class PolyLossHead(Head):
    """A similarity, an optional affine map of its scores, an optional contrastive warm-up, and the polynomial loss.

    The warm-up reads mapped scores, too, so `slope` is a learned factor on its temperature.
    """

    citation = (
        "@inproceedings{wei2020universal, author={Wei, Jiwei and Xu, Xing and Yang, Yang and Ji, Yanli and Wang, Zheng "
        "and Shen, Heng Tao}, title={Universal Weighting Metric Learning for Cross-Modal Matching}, "
        "booktitle={CVPR}, year={2020}}"
    )

    def __init__(self, config: PolyLossHeadConfig, similarity: Similarity | None = None):
        super().__init__(similarity)
        self.config = config
        self.score_map = ScoreMap() if config.score_map == "affine" else None
        self.weighting = Weighting(config.positive, config.negative, config.joint_clamp, config.floor)

    def loss(self, images, texts, image_ids, pair_ids, pair_weight=None, caption_ids=None):
        config = self.config
        rows, columns = global_scores(self.similarity, images, texts)
        targets = local_targets(rows)
        siblings = not_negatives(rows, image_ids, caption_ids, config)
        warming_up = self.epoch < config.warmup_epochs
        if self.score_map is not None:
            if self.training and not warming_up:
                self.score_map.set_from(rows, targets, siblings)
            rows, columns = self.score_map(rows), self.score_map(columns)
        if warming_up:
            scores = (rows / config.warmup_temperature, columns / config.warmup_temperature)
            both = [contrastive_cross_entropy(score, targets, siblings, "mask") for score in scores]
            losses, logs = (both[0] + both[1]) / 2, {}
        else:
            anchors = [
                polynomial_losses(scores, targets, siblings, config.margin, self.weighting, config.form)
                for scores in (rows, columns)
            ]
            losses, logs = anchors[0].losses + anchors[1].losses, summary(*anchors)
        if pair_weight is not None:
            losses = pair_weight * losses
        return losses.mean(), logs


@torch.no_grad()
def summary(rows: Anchors, columns: Anchors) -> dict[str, Tensor]:
    """What to log to distinguish a silent loss (gate, dead zone of Q) from one that has converged."""
    negatives = torch.cat([rows.negatives, columns.negatives])
    known = negatives.isfinite()
    return {
        "active": torch.cat([rows.active, columns.active]).float().mean(),
        "positive": rows.positives.mean(),
        "hardest_negative": negatives.where(known, 0).sum() / known.sum().clamp(min=1),
    }
