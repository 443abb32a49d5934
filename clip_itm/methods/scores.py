"""Scores of a global batch under any similarity: what one process would compute on all pairs, split among several."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from clip_itm.distributed import gather_constant, gather_with_gradient, num_processes, process_index
from clip_itm.similarity.base import Similarity

SCORE_BYTES = 64 * 2**20  # for the scores of a block of rows; a loss needs several times as much
RowLosses = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""Losses [r] of scores [r, B], of `targets` int64 [r], and of the masks `same_image` and `same_caption` bool [r, B]."""


def both_directions(
    losses: RowLosses,
    similarity: Similarity,
    images: Tensor,
    texts: Tensor,
    image_ids: Tensor | None,
    caption_ids: Tensor | None,
    caption_mode: str,
) -> Tensor:
    """The mean [b] of the `losses` of local image rows and local caption rows (see `global_scores`).

    If `image_ids` is None, the mask of the row's image marks only its own pair. Dot-product scores that take more than
    `SCORE_BYTES` are computed a block of rows at a time, and again in the backward pass: no process holds all of them.
    """
    size = max(1, SCORE_BYTES // (max(4, images.element_size()) * len(images) * num_processes()))
    if not similarity.is_dot_product or size >= len(images):
        rows, columns = global_scores(similarity, images, texts)
        masks = same_image(rows, image_ids), same_caption(rows, image_ids, caption_ids, caption_mode)
        return (losses(rows, local_targets(rows), *masks) + losses(columns, local_targets(rows), *masks)) / 2
    images, texts = (rows.to(torch.promote_types(rows.dtype, torch.float32)) for rows in (images, texts))
    all_images, all_texts = gather_with_gradient(images), gather_with_gradient(texts)
    require_caption_ids(caption_ids, caption_mode)
    columns = [None if ids is None else gather_constant(ids) for ids in (image_ids, caption_ids)]
    places = local_targets(images)

    def block(own: slice, of_images: bool) -> Tensor:
        scores = similarity(images[own], all_texts) if of_images else similarity(all_images, texts[own]).T
        shown, equal = torch.zeros_like(scores, dtype=torch.bool), None
        if image_ids is None:
            shown = shown.scatter(1, places[own][:, None], True)
        else:
            shown = image_ids[own][:, None] == columns[0]
        if caption_mode != "negative":
            equal = (caption_ids[own][:, None] == columns[1]) & ~shown
        return losses(scores, places[own], shown, equal)

    starts = range(0, len(images), size)
    found = [
        torch.cat([checkpoint(block, slice(at, at + size), side, use_reentrant=False) for at in starts])
        for side in (True, False)
    ]
    return (found[0] + found[1]) / 2


def global_scores(similarity: Similarity, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
    """Local images against all captions, and local captions against all images: both [b, B], in float32 or more.

    `images`, `texts` [b, ...] embeddings, row k is pair k; local pair k is column `process_index() * b + k`.
    `columns[k, j]` is the score of image j and caption k. Every pair is scored once, by the process of its caption, and
    the blocks are gathered with their gradients: statistics over the images of a batch (SAF) cover the whole batch.
    """
    images, texts = (
        embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)) for embeddings in (images, texts)
    )
    if num_processes() == 1:
        scores = similarity(images, texts)
        return scores, scores.T
    if similarity.is_dot_product:
        return similarity(images, gather_with_gradient(texts)), similarity(gather_with_gradient(images), texts).T
    columns = similarity(gather_with_gradient(images), texts).T
    own = slice(process_index() * len(texts), (process_index() + 1) * len(texts))
    return gather_with_gradient(columns.contiguous())[:, own].T, columns


def local_targets(rows: Tensor) -> Tensor:
    """Columns int64 [b] of the local pairs in scores [b, B]."""
    return torch.arange(len(rows), device=rows.device) + process_index() * len(rows)


def same_image(rows: Tensor, image_ids: Tensor | None) -> Tensor:
    """Bool [b, B]: True for columns of the row's image, by `image_ids` int64 [b]; if None, only the row's own pair."""
    if image_ids is None:
        return torch.zeros_like(rows, dtype=torch.bool).scatter(1, local_targets(rows)[:, None], True)
    return image_ids[:, None] == gather_constant(image_ids)[None, :]


def same_caption(rows: Tensor, image_ids: Tensor, caption_ids: Tensor | None, mode: str) -> Tensor | None:
    """Bool [b, B]: True for columns of another image with an equal caption, by `caption_ids` int64 [b].

    None if they are negatives (`mode` "negative"). The mask is the same for image rows and caption rows. Columns of the
    row's own image are never True, whatever their caption. Raises ValueError in another mode without `caption_ids`.
    """
    if mode == "negative":
        return None
    require_caption_ids(caption_ids, mode)
    return (caption_ids[:, None] == gather_constant(caption_ids)[None, :]) & ~same_image(rows, image_ids)


def require_caption_ids(caption_ids: Tensor | None, mode: str) -> None:
    """Raises ValueError if `mode` needs caption ids and there are none."""
    if caption_ids is None and mode != "negative":
        raise ValueError(
            f"head.same_caption: {mode} needs to know which captions are equal, and the batch has no "
            "caption_ids; make batches with a PairDataset of caption_numbers"
        )


def not_negatives(rows: Tensor, image_ids: Tensor, caption_ids: Tensor | None, config) -> Tensor:
    """Bool [b, B]: True for the row's own column and for those that the section `config` masks (`same_...`)."""
    masked = same_image(rows, image_ids if config.same_image == "mask" else None)
    equal = same_caption(rows, image_ids, caption_ids, config.same_caption)
    return masked if equal is None else masked | equal


def merged(logits: Tensor, targets: Tensor, right: Tensor) -> Tensor:
    """Logits [b, B] whose own column, `targets` int64 [b], is replaced by the logsumexp of all `right` columns.

    `right` bool [b, B] includes the own column; the caller masks the others, which stay in the logits. A row with no
    other right column keeps its bits.
    """
    together = logits.masked_fill(~right, -torch.inf).logsumexp(dim=1, keepdim=True)
    return logits.scatter(1, targets[:, None], together)


def without_equal_captions(logits: Tensor, targets: Tensor, equal: Tensor | None, mode: str) -> Tensor:
    """Logits [b, B] of a softmax in which the columns `equal` (see `same_caption`) do not compete.

    "mask": they are left out. "positive": they are merged into the own column.
    """
    if equal is None:
        return logits
    if mode == "positive":
        logits = merged(logits, targets, equal.scatter(1, targets[:, None], True))
    return logits.masked_fill(equal, -torch.inf)
