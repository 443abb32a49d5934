"""The bidirectional hinge, with all negatives or the hardest ones.

Lee et al., ECCV 2018, section 3.2 (docs/papers/polyloss.md 5); the hardest ones: VSE++ (Faghri et al., BMVC 2018).

    cost[i, j] = max(0, margin + S[i, j] - S[i, i])   for j != i, and the same in S^T
    loss       = sum_i max_j cost[i, j], or sum_ij cost[i, j], of both directions
"""

import torch
from torch import Tensor

from clip_itm.distributed import num_processes
from clip_itm.methods.base import Head
from clip_itm.methods.scores import global_scores, local_targets, not_negatives
from clip_itm.methods.triplet.configuration import TripletHeadConfig
from clip_itm.similarity.base import Similarity


def hinge_losses(scores: Tensor, targets: Tensor, same_image: Tensor, margin: float, hardest: bool) -> Tensor:
    """Loss [b] of every row, in one direction: its `hardest` negative's hinge, or the sum over all negatives.

    `scores` [b, B]; `targets` int64 [b], the row's own column; `same_image` bool [b, B], columns that are not negatives
    of the row, its own included.

    Example:
        >>> scores = torch.tensor([[0.9, 0.8, 0.1], [0.2, 0.9, 0.3], [0.9, 0.8, 0.9]])
        >>> hinge_losses(scores, torch.arange(3), torch.eye(3, dtype=torch.bool), margin=0.2, hardest=True)
        tensor([0.1000, 0.0000, 0.2000])
    """
    positives = scores.gather(1, targets[:, None])
    if hardest:
        # argmax, not max: among equal negatives the first gets the whole gradient, on every device
        column = scores.masked_fill(same_image, -torch.inf).argmax(dim=1, keepdim=True)
        scores, same_image = scores.gather(1, column), same_image.gather(1, column)
    return (margin + scores - positives).relu().masked_fill(same_image, 0).sum(dim=1)


class TripletHead(Head):
    """A similarity trained with the hinge loss, which uses all negatives during the first `warmup_epochs`."""

    citation = (
        "@inproceedings{faghri2018vsepp, author={Faghri, Fartash and Fleet, David J. and Kiros, Jamie Ryan and "
        "Fidler, Sanja}, title={VSE++: Improving Visual-Semantic Embeddings with Hard Negatives}, "
        "booktitle={BMVC}, year={2018}}"
    )

    def __init__(self, config: TripletHeadConfig, similarity: Similarity | None = None):
        super().__init__(similarity)
        self.config = config

    def loss(self, images, texts, image_ids, pair_ids, pair_weight=None, caption_ids=None):
        config = self.config
        hardest = config.negatives == "hardest" and self.epoch >= config.warmup_epochs
        rows, columns = global_scores(self.similarity, images, texts)
        targets = local_targets(rows)
        siblings = not_negatives(rows, image_ids, caption_ids, config)
        both = [hinge_losses(scores, targets, siblings, config.margin, hardest) for scores in (rows, columns)]
        losses = both[0] + both[1]
        logs = {
            "active": (torch.cat(both).detach() > 0).float().mean(),
            "positive": rows.detach().gather(1, targets[:, None]).mean(),
        }
        if pair_weight is not None:
            losses = pair_weight * losses
        # the mean over processes has to be the sum over the global batch
        return losses.mean() if config.reduction == "mean" else losses.sum() * num_processes(), logs
