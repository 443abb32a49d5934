"""Scores of a global batch under any similarity: what one process would compute on all pairs, split among several."""

import torch
from torch import Tensor

from clip_itm.distributed import gather_constant, gather_with_gradient, num_processes, process_index
from clip_itm.similarity.base import Similarity


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
