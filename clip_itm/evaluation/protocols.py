"""Protocols: which photos and captions of a split compete with one another, as published tables have it."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from clip_itm.evaluation.judged_ranking import compute_best_ranks, compute_positive_ranks
from clip_itm.evaluation.judgements import JudgedGallery, judged_gallery
from clip_itm.evaluation.precision_result import PrecisionResult
from clip_itm.evaluation.ranking import Similarity, check_owners, compute_ranks
from clip_itm.evaluation.result import RetrievalResult

PUBLISHED_CAPTIONS = 5  # per photo, in every published table on Flickr30K and COCO


class Gallery(NamedTuple):
    """Photos [Ni, ...] and captions [Nt, ...] that are ranked against each other; `caption_image` int64 [Nt].

    `image_ids` [Ni] and `caption_ids` [Nt] are the names they have in their data set, where a protocol needs them.
    """

    images: Tensor
    texts: Tensor
    caption_image: Tensor
    image_ids: Sequence[str] | None = None
    caption_ids: Sequence[str] | None = None


def whole_split(gallery: Gallery) -> list[Gallery]:
    """Everything against everything: any number of photos, any number of captions a photo."""
    return [gallery]


def published_split(gallery: Gallery, name: str, photos: int, folds: int = 1) -> list[Gallery]:
    """Exactly `photos` photos with the first five captions of each, as `folds` runs of consecutive photos.

    A few COCO photos have six or seven captions; published tables use the first five (25,000 for 5,000 photos).
    """
    images, texts, owner, *_ = gallery
    if len(images) != photos:
        raise ValueError(
            f"protocol {name} is defined for {photos} photos, and this split has {len(images)}; use the published test "
            f"split, or the protocol 'all'"
        )
    counts = torch.bincount(owner, minlength=photos)
    if (poor := (counts < PUBLISHED_CAPTIONS).nonzero()).numel():
        raise ValueError(
            f"protocol {name} needs {PUBLISHED_CAPTIONS} captions a photo; {len(poor)} photos have fewer, the first is "
            f"photo {int(poor[0])} with {int(counts[poor[0]])}; use the protocol 'all'"
        )
    kept = first_captions(owner, counts, PUBLISHED_CAPTIONS)
    size = photos // folds
    galleries = []
    for start in range(0, photos, size):
        captions = kept[(owner[kept] >= start) & (owner[kept] < start + size)]
        galleries.append(
            Gallery(images[start : start + size], texts[captions.to(texts.device)], owner[captions] - start)
        )
    return galleries


def first_captions(owner: Tensor, counts: Tensor, limit: int) -> Tensor:
    """Ascending numbers of the captions that are among the first `limit` of their photo."""
    by_image = torch.argsort(owner, stable=True)
    place = torch.arange(len(owner)) - (counts.cumsum(0) - counts)[owner[by_image]]
    return by_image[place < limit].sort().values


def judged_split(gallery: Gallery, name: str) -> JudgedGallery:
    """The COCO test split of Karpathy, where people judged which captions of other photos are right, too."""
    return judged_gallery(*gallery, name)


PROTOCOLS: dict[str, Callable[[Gallery], list[Gallery] | JudgedGallery]] = {
    "all": whole_split,
    "flickr-1k": partial(published_split, name="flickr-1k", photos=1000),
    "coco-1k": partial(published_split, name="coco-1k", photos=5000, folds=5),
    "coco-5k": partial(published_split, name="coco-5k", photos=5000),
    "cxc": partial(judged_split, name="cxc"),
    "eccv": partial(judged_split, name="eccv"),
}


def evaluate_retrieval(
    images: Tensor,
    texts: Tensor,
    caption_image: np.ndarray | Tensor,
    protocols: Sequence[str] = ("all",),
    similarity: Similarity | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
    *,
    image_ids: Sequence[str] | None = None,
    caption_ids: Sequence[str] | None = None,
    block_size: int | None = None,
    device: str | torch.device | None = None,
) -> dict[str, RetrievalResult | PrecisionResult]:
    """Ranks, metrics and bootstrap intervals under each protocol, by name.

    images, texts, caption_image, similarity, block_size, device: see `compute_ranks`. `bootstrap` is the number of
    replicates (0: no intervals); `image_ids` [Ni] and `caption_ids` [Nt] are asked for by eccv and cxc. Raises
    ValueError for an unknown protocol and for a split that a protocol is not defined for, before anything is scored;
    warns where equal scores decide a metric at its second decimal.
    """
    unknown = [name for name in protocols if name not in PROTOCOLS]
    if unknown or isinstance(protocols, str):
        raise ValueError(f"unknown protocols {protocols!r}; expected a list of names out of {', '.join(PROTOCOLS)}")
    gallery = Gallery(images, texts, check_owners(caption_image, len(images), len(texts)), image_ids, caption_ids)
    parts = {name: PROTOCOLS[name](gallery) for name in protocols}
    results = {}
    for name, part in parts.items():
        match name:
            case "eccv":
                both = compute_positive_ranks(part, similarity, block_size, device)
                results[name] = PrecisionResult.from_ranks(name, both, bootstrap, seed)
            case "cxc":
                ranks = compute_best_ranks(part, similarity, block_size, device)
                results[name] = RetrievalResult.from_ranks(name, [ranks], bootstrap, seed)
            case _:
                folds = [compute_ranks(*fold[:3], similarity, block_size, device) for fold in part]
                results[name] = RetrievalResult.from_ranks(name, folds, bootstrap, seed)
        warn_of_ties(results[name])
    return results


def warn_of_ties(result: RetrievalResult | PrecisionResult) -> None:
    won = result.metrics
    lost = {name: won[name] - gap for name, gap in result.tie_gap.items()}
    moved = [name for name in lost if name != "rsum" and round(won[name], 2) != round(lost[name], 2)]
    if moved:
        worst = max(moved, key=result.tie_gap.get)
        warnings.warn(
            f"{result.protocol}: equal scores decide {', '.join(moved)}; {worst} is {won[worst]:.2f} if ties count as "
            f"won and {lost[worst]:.2f} if they count as lost. Score in float32, and look for identical photos, "
            f"captions or embeddings",
            stacklevel=3,
        )
