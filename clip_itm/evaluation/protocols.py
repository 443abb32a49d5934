"""The protocols: which images and captions of a split compete with one another in published tables."""

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from clip_itm.evaluation.configuration import require_own
from clip_itm.evaluation.equal_captions import EqualCaptions
from clip_itm.evaluation.judged_ranking import PositiveRanks, compute_best_ranks, compute_positive_ranks
from clip_itm.evaluation.judgements import JudgedSplit, judged_split
from clip_itm.evaluation.precision_result import PrecisionResult
from clip_itm.evaluation.protocol import EmbeddedSplit, Protocol, Result
from clip_itm.evaluation.ranking import Ranks, Scorer, check_owners
from clip_itm.visible import counted

PUBLISHED_CAPTIONS = 5  # per image, in every published table on Flickr30K and COCO


class WholeSplit(Protocol):
    """Everything against everything: any number of images, any number of captions per image."""

    name = "all"

    def select(self, split: EmbeddedSplit) -> list[EmbeddedSplit]:
        """The split itself."""
        return [split]


class PublishedSplit(Protocol):
    """Exactly `num_images` images with the first five captions of each, in `folds` folds of consecutive images.

    A few COCO images have six or seven captions; published tables use the first five (25,000 for 5,000 images).
    """

    def __init__(self, name: str, num_images: int, folds: int = 1):
        self.name, self.num_images, self.folds = name, num_images, folds

    def select(self, split: EmbeddedSplit) -> list[EmbeddedSplit]:
        """The folds; ValueError for another number of images, and for an image with fewer than five captions."""
        images, texts, owner, *_ = split
        if len(images) != self.num_images:
            raise ValueError(
                f"protocol {self.name} is defined for {self.num_images} photos, and this split has {len(images)}; use "
                "the published test split, or the protocol 'all'"
            )
        counts = torch.bincount(owner, minlength=self.num_images)
        if (poor := (counts < PUBLISHED_CAPTIONS).nonzero()).numel():
            raise ValueError(
                f"protocol {self.name} needs {PUBLISHED_CAPTIONS} captions per photo; "
                f"{counted(len(poor), 'photo has', 'photos have')} fewer, "
                f"the first is photo {int(poor[0])} with {int(counts[poor[0]])}; use the protocol 'all'"
            )
        kept = split.first_captions(PUBLISHED_CAPTIONS)
        size = self.num_images // self.folds
        parts = []
        for start in range(0, self.num_images, size):
            captions = kept[(owner[kept] >= start) & (owner[kept] < start + size)]
            parts.append(
                EmbeddedSplit(images[start : start + size], texts[captions.to(texts.device)], owner[captions] - start)
            )
        return parts


class Cxc(Protocol):
    """Karpathy's COCO test split, where captions of other images are right too if people judged so for CxC."""

    name = "cxc"

    def select(self, split: EmbeddedSplit) -> list[JudgedSplit]:
        """The split with its right answers; for what is raised see `judged_split`."""
        return [judged_split(*split, self.name)]

    def rank(self, part: JudgedSplit, similarity, block_size, device) -> Ranks:
        """The rank of the best right answer to every query."""
        return compute_best_ranks(part, similarity, block_size, device)


class Eccv(Protocol):
    """Karpathy's COCO test split with the right answers of ECCV Caption, all of which count: mAP@R and R-Precision."""

    name = "eccv"
    has_recall = False

    def select(self, split: EmbeddedSplit) -> list[JudgedSplit]:
        """The split with its right answers; for what is raised see `judged_split`."""
        return [judged_split(*split, self.name)]

    def rank(self, part: JudgedSplit, similarity, block_size, device) -> tuple[PositiveRanks, PositiveRanks]:
        """The ranks of all right answers, image to text and text to image."""
        return compute_positive_ranks(part, similarity, block_size, device)

    def result(self, ranks: Sequence, replicates: int, seed: int) -> PrecisionResult:
        """R@1, mAP@R and R-Precision with their intervals."""
        (both,) = ranks
        return PrecisionResult.from_ranks(self.name, both, replicates, seed)


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        WholeSplit(),
        PublishedSplit("flickr-1k", num_images=1000),
        PublishedSplit("coco-1k", num_images=5000, folds=5),
        PublishedSplit("coco-5k", num_images=5000),
        Cxc(),
        Eccv(),
    )
}


def evaluate_retrieval(
    images: Tensor,
    texts: Tensor,
    caption_image: np.ndarray | Tensor,
    protocols: Sequence[str] = ("all",),
    similarity: Scorer | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
    *,
    image_ids: Sequence[str] | None = None,
    caption_ids: Sequence[str] | None = None,
    caption_numbers: Sequence[int] | np.ndarray | None = None,
    block_size: int | None = None,
    device: str | torch.device | None = None,
) -> dict[str, Result]:
    """Ranks, metrics and bootstrap intervals under each protocol, by its name.

    images, texts, caption_image, similarity, block_size, device: see `compute_ranks`. `bootstrap` is the number of
    replicates (0: no intervals); eccv and cxc need `image_ids` [Ni] and `caption_ids` [Nt]. With `caption_numbers` int
    [Nt], the same for equal captions, the images of all equal captions are right (protocol all only). Raises
    ValueError for an unknown protocol and for a split that a protocol is not defined for, before anything is scored.
    Warns if equal scores decide a metric at its second decimal.

    Example:
        >>> images = torch.eye(2)
        >>> texts = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])  # the third is a wrong caption of image 1
        >>> result = evaluate_retrieval(images, texts, torch.tensor([0, 1, 1]))["all"]
        >>> {name: round(result.metrics[name], 1) for name in ("i2t_r1", "t2i_r1")}
        {'i2t_r1': 100.0, 't2i_r1': 66.7}
    """
    unknown = [name for name in protocols if name not in PROTOCOLS]
    if unknown or isinstance(protocols, str):
        raise ValueError(f"unknown protocols {protocols!r}; expected a list of names out of {', '.join(PROTOCOLS)}")
    split = EmbeddedSplit(images, texts, check_owners(caption_image, len(images), len(texts)), image_ids, caption_ids)
    chosen = {name: PROTOCOLS[name] for name in protocols}
    if caption_numbers is not None:
        require_own(protocols)
        chosen = {"all": EqualCaptions(caption_numbers)}
    selected = {name: protocol.select(split) for name, protocol in chosen.items()}
    results: dict[str, Result] = {}
    for name, parts in selected.items():
        ranks = [chosen[name].rank(part, similarity, block_size, device) for part in parts]
        results[name] = chosen[name].result(ranks, bootstrap, seed)
        warn_of_ties(results[name])
    return results


def warn_of_ties(result: Result) -> None:
    """Warn if equal scores decide a metric at its second decimal."""
    won = result.metrics
    lost = {name: won[name] - gap for name, gap in result.tie_gap.items()}
    moved = [name for name in lost if name != "rsum" and round(won[name], 2) != round(lost[name], 2)]
    if moved:
        worst = max(moved, key=lambda name: result.tie_gap[name])
        warnings.warn(
            f"{result.protocol}: equal scores decide {', '.join(moved)}; {worst} is {won[worst]:.2f} if ties count as "
            f"won and {lost[worst]:.2f} if they count as lost. Score in float32, and look for identical photos, "
            "captions or embeddings",
            stacklevel=3,
        )
