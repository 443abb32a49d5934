"""CRCL: active complementary loss with self-refined labels (Qin et al., NeurIPS 2023; docs/papers/crcl.md)."""

import torch
from torch import Tensor

from clip_itm.methods.base import Head
from clip_itm.methods.crcl.configuration import CrclHeadConfig
from clip_itm.methods.crcl.labels import LabelStore, Phase, refine
from clip_itm.methods.crcl.loss import crcl_loss, match_both_ways, matching_probability
from clip_itm.methods.scores import global_scores, same_caption
from clip_itm.similarity.base import Similarity


class CrclHead(Head):
    """A similarity at a fixed temperature; every training pair has a label in [0, 1] that says how much it is believed.

    The temperature does not train: that would move the matching probabilities, and the labels with them. Training sets
    `labels`, one per pair, and `phase`, which says what an epoch does with them; without `labels` every label is 1.
    """

    citation = (
        "@inproceedings{qin2023crcl, author={Qin, Yang and Sun, Yuan and Peng, Dezhong and Zhou, Joey Tianyi and "
        "Peng, Xi and Hu, Peng}, title={Cross-modal Active Complementary Learning with Self-refining Correspondence}, "
        "booktitle={NeurIPS}, year={2023}}"
    )

    def __init__(self, config: CrclHeadConfig, similarity: Similarity | None = None):
        super().__init__(similarity)
        self.config = config
        self.labels: LabelStore | None = None
        self.phase = Phase(piece=0, epoch_in_piece=0, frozen=True, replaces=False)

    def scale(self) -> Tensor:
        return torch.tensor(1 / self.config.temperature)

    def loss(self, images, texts, image_ids, pair_ids, pair_weight=None, caption_ids=None):
        """See `Head.loss`. In training it also refines the labels; `pair_weight` is already in their first values."""
        config = self.config
        siblings = image_ids if config.same_image == "mask" else None
        scores = global_scores(self.similarity, images, texts)
        equal = same_caption(scores[0], image_ids, caption_ids, config.same_caption)
        rows, columns, targets = match_both_ways(*scores, config.temperature, siblings, config.softmax_set, equal)
        p = matching_probability(rows, columns)
        stored = torch.ones_like(p) if self.labels is None else self.labels.read(pair_ids).to(p.dtype)
        used, written = refine(
            stored, p, self.phase, config.label_momentum, config.label_threshold, config.store_filtered
        )
        if self.labels is not None:
            used, written = (self.labels.heeded(pair_ids, values) for values in (used, written))
        if self.labels is not None and self.training and torch.is_grad_enabled():
            self.labels.write(pair_ids, written, p)
        total, active, complementary = crcl_loss(rows, columns, used, targets, config.complementary_weight)
        return total, {
            "active": active.detach(),
            "complementary": complementary.detach(),
            "matching_probability": p.mean(),
            "label": used.mean(),
        }
