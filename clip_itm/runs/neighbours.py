"""The images nearest to each image by a model's features, from which `noise.level: neighbour` takes captions."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import xxhash
from torch import Tensor

from clip_itm.data.arrays import new_array
from clip_itm.data.region_features import RegionFeatures
from clip_itm.data.rows import Split
from clip_itm.distributed import process_state
from clip_itm.training.encode import encode_stored
from clip_itm.training.encoder import Encoder
from clip_itm.training.feature_cache import NO_ROOM, kept_arrays
from clip_itm.visible import counted

BLOCK_BYTES = 64 * 2**20  # of float64 cosines
ROWS = 4096  # normalised at once


def embeddings_of_images(encoder: Encoder, split: Split) -> Tensor:
    """One vector per image [images, D], as the model of `encoder` embeds it; its image tower must be frozen."""
    model, inputs = encoder.model, encoder.image_inputs(split)
    assert inputs is not None
    with torch.inference_mode():
        embeddings = encode_stored(model.eval().encode_images, inputs, len(split), model.device, encoder.batch_size)
        return model.head.similarity.vectors(embeddings)


def mean_regions(regions: RegionFeatures, count: int) -> Tensor:
    """The mean [images, C] of the regions of images 0..count-1, padding left out."""
    means = []
    for images in _blocks(count, 256):
        batch = regions.batch(np.arange(count)[images])
        tokens, mask = batch["image_tokens"], batch["image_mask"]
        means.append(tokens.sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1))
    return torch.cat(means)


def nearest_images(vectors: Tensor, count: int) -> np.ndarray:
    """The `count` other rows of `vectors` [N, D] with the largest cosine, all others if there are fewer: int64 [N, k].

    In ascending order. Cosines are computed in float64 and rounded to 9 decimals, so that copies of an image tie; of
    equal ones, the first rows are taken.

    Example:
        >>> nearest_images(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [2.0, 0.0]]), count=1)[:, 0]
        array([3, 0, 1, 0])
    """
    k = min(count, len(vectors) - 1)
    nearest = np.empty((len(vectors), k), dtype=np.int64)
    for block in _blocks(len(vectors) if k else 0, max(1, BLOCK_BYTES // (8 * len(vectors)))):
        rows = _unit(vectors[block])
        cosines = torch.cat([rows @ _unit(vectors[columns]).T for columns in _blocks(len(vectors), ROWS)], dim=1)
        cosines = cosines.round(decimals=9)
        own = torch.arange(len(rows))
        cosines[own, own + block.start] = -torch.inf
        last = cosines.topk(k).values[:, -1:]
        equal, greater = cosines == last, cosines > last
        chosen = greater | (equal & (equal.cumsum(dim=1) <= k - greater.sum(dim=1, keepdim=True)))
        nearest[block] = chosen.nonzero()[:, 1].view(-1, k).numpy()
    return nearest


def kept_nearest_images(vectors: Tensor, count: int, folder: Path) -> np.ndarray:
    """`nearest_images`, kept in `folder` under a hash of the vectors: every run of a comparison asks for it."""
    if len(vectors) < 2:
        return nearest_images(vectors, count)
    if not vectors.isfinite().all():
        raise ValueError(
            f"the features of {counted(int((~vectors.isfinite().all(dim=1)).sum()), 'photo is', 'photos are')} "
            "not finite"
        )
    digest = xxhash.xxh3_128(vectors.contiguous().numpy().tobytes()).hexdigest()
    path = folder / f"neighbours-{digest}-{count}.npy"

    def write() -> None:
        if process_state().is_main_process:
            nearest = nearest_images(vectors, count)
            with new_array(path, nearest.dtype, nearest.shape, NO_ROOM) as array:
                array[:] = nearest
        process_state().wait_for_everyone()

    return kept_arrays([path], len(vectors), write)[0]


def _blocks(count: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, count, size))


def _unit(rows: Tensor) -> Tensor:
    return F.normalize(rows.double(), dim=1)
