"""The contrastive loss of every training pair under one model: what mixtures and memory banks are made of."""

import numpy as np
import torch
from torch import Tensor

from clip_itm.heads.clip import contrastive_cross_entropy
from clip_itm.precision import exact_float32


def pair_losses(
    images: Tensor,
    texts: Tensor,
    pair_image: np.ndarray,
    source: np.ndarray,
    scale: float,
    batch_size: int = 256,
    seed: int | None = 0,
) -> np.ndarray:
    """Symmetric loss l of each pair against the others of its batch (npc.md 2.2): float32 [N], in pair order.

    `images` [Ni, D] and `texts` [Nt, D] are unit vectors; pair k is photo `pair_image[k]` with caption `source[k]`,
    both int64 [N]; `scale` multiplies cosines. Batches are parts of a permutation drawn with `seed`, so that the
    captions of a photo rarely meet: in dataset order (seed None) five siblings share one photo, and the text-to-image
    half of each of their losses is at least ln 5. The last batch may be smaller; a loss depends on its batch's size.
    """
    count = len(source)
    order = np.arange(count) if seed is None else np.random.default_rng(seed).permutation(count)
    losses = np.empty(count, dtype=np.float32)
    with torch.inference_mode(), exact_float32(images.device):
        for start in range(0, count, batch_size):
            first = start if seed is None else max(0, min(start, count - batch_size))
            batch = order[first : start + batch_size]
            photos = images[torch.from_numpy(pair_image[batch])].float()
            captions = texts[torch.from_numpy(source[batch])].float()
            logits = scale * photos @ captions.T
            targets = torch.arange(len(batch), device=logits.device)
            both = contrastive_cross_entropy(logits, targets) + contrastive_cross_entropy(logits.T, targets)
            losses[order[start : start + batch_size]] = (both / 2)[start - first :].cpu().numpy()
    return losses
