"""The contrastive loss of every training pair under one model, from which mixtures and memory banks are made."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from clip_itm.methods.clip.head import contrastive_cross_entropy
from clip_itm.precision import exact_float32
from clip_itm.similarity.cosine import Cosine


def seeded_batches(count: int, batch_size: int, seed: int) -> Iterator[tuple[np.ndarray, int]]:
    """A permutation of 0..count-1 in whole batches, each int64 [min(count, batch_size)], with its number of repeats.

    The last batch is filled up with the last indices of the batch before, which come first in it: these are repeats.

    Example:
        >>> [(len(batch), repeats) for batch, repeats in seeded_batches(count=5, batch_size=2, seed=0)]
        [(2, 0), (2, 0), (2, 1)]
    """
    order = np.random.default_rng(seed).permutation(count)
    for start in range(0, count, batch_size):
        first = max(0, min(start, count - batch_size))
        yield order[first : start + batch_size], start - first


def equal_captions(captions: np.ndarray, image: np.ndarray) -> Tensor:
    """Bool [b, b]: True for pairs with equal captions and different images, given as numbers int64 [b]."""
    return torch.from_numpy((captions[:, None] == captions) & (image[:, None] != image))


def pair_losses(
    images: Tensor,
    texts: Tensor,
    pair_image: np.ndarray,
    source: np.ndarray,
    scale: float,
    batch_size: int = 256,
    seed: int | None = 0,
    similarity: Callable[[Tensor, Tensor], Tensor] | None = None,
    captions: np.ndarray | None = None,
) -> np.ndarray:
    """Symmetric loss l of each pair against the others of its batch (docs/papers/npc.md 2.2): float32 [N].

    `images` [Ni, ...] and `texts` [Nt, ...] are embeddings, by default unit vectors compared by cosine; pair k is image
    `pair_image[k]` with caption `source[k]`, both int64 [N]; `scale` multiplies similarities. Batches are parts of a
    permutation drawn with `seed`, so that the captions of an image rarely meet: in dataset order (`seed` None) an image
    has its five captions in one batch, and the text-to-image half of each of their losses is at least ln 5. A loss
    depends on the batch size, and a small batch makes wrong pairs look clean, so the last batch is full, too; in
    dataset order it is smaller, as published. `captions` int64 [N], equal for equal captions: pairs of other images
    with an equal caption are then not negatives.

    Example:
        >>> embeddings = torch.eye(4)
        >>> index = np.arange(4)
        >>> pair_losses(embeddings, embeddings, index, source=np.array([0, 1, 3, 2]), scale=10.0).round(2)
        array([ 0.,  0., 10., 10.], dtype=float32)
    """
    count, similarity = len(source), similarity or Cosine()
    if seed is None:
        batches = ((np.arange(start, min(start + batch_size, count)), 0) for start in range(0, count, batch_size))
    else:
        batches = seeded_batches(count, batch_size, seed)
    losses = np.empty(count, dtype=np.float32)
    with torch.inference_mode(), exact_float32(images.device):
        for batch, known in batches:
            batch_images = images[torch.from_numpy(pair_image[batch])].float()
            batch_texts = texts[torch.from_numpy(source[batch])].float()
            logits = scale * similarity(batch_images, batch_texts)
            targets = torch.arange(len(batch), device=logits.device)
            if captions is not None:
                equal = equal_captions(captions[batch], pair_image[batch])
                logits = logits.masked_fill(equal.to(logits.device), -torch.inf)
            both = contrastive_cross_entropy(logits, targets) + contrastive_cross_entropy(logits.T, targets)
            losses[batch[known:]] = (both / 2)[known:].cpu().numpy()
    return losses
