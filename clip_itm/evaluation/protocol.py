"""A protocol of evaluation: which images and captions compete, how they are ranked, what becomes of the ranks."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from clip_itm.evaluation.judgements import JudgedSplit
from clip_itm.evaluation.precision_result import PrecisionResult
from clip_itm.evaluation.ranking import Scorer, compute_ranks
from clip_itm.evaluation.result import RetrievalResult

Result = RetrievalResult | PrecisionResult


class EmbeddedSplit(NamedTuple):
    """Embeddings of the images [Ni, ...] and captions [Nt, ...] that compete; `caption_image` is int64 [Nt].

    `image_ids` [Ni] and `caption_ids` [Nt] are their ids in the data set, which some protocols need.
    """

    images: Tensor
    texts: Tensor
    caption_image: Tensor
    image_ids: Sequence[str] | None = None
    caption_ids: Sequence[str] | None = None

    def first_captions(self, limit: int) -> Tensor:
        """Indices, ascending, of the captions that are among the first `limit` of their image."""
        by_image = torch.argsort(self.caption_image, stable=True)
        counts = torch.bincount(self.caption_image, minlength=len(self.images))
        place = torch.arange(len(self.texts)) - (counts.cumsum(0) - counts)[self.caption_image[by_image]]
        return by_image[place < limit].sort().values


class Protocol(ABC):
    """Which images and captions of a split compete, how they are ranked, and what becomes of the ranks.

    `name` is its name in recipes and results. By default, the best of an image's own captions and a caption's own
    image are ranked, and the result is recall, averaged over the parts.
    """

    name: str
    has_recall = True  # and so ranks of one right answer per query, which plots show

    @abstractmethod
    def select(self, split: EmbeddedSplit) -> Sequence[EmbeddedSplit | JudgedSplit]:
        """The parts of `split`, each ranked by itself; ValueError for a split that the protocol is not defined for.

        It is also called before there is a model, with embeddings of width 0.
        """

    def rank(self, part, similarity: Scorer | None, block_size: int | None, device: str | torch.device | None):
        """The ranks of one part; for the other arguments see `compute_ranks`."""
        return compute_ranks(part.images, part.texts, part.caption_image, similarity, block_size, device)

    def result(self, ranks: Sequence, replicates: int, seed: int) -> Result:
        """Metrics and bootstrap intervals from the ranks of all parts."""
        return RetrievalResult.from_ranks(self.name, ranks, replicates, seed)
