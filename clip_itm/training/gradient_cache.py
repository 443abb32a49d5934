"""The gradient cache (GradCache, Gao et al. 2021, arXiv 2101.06983): for batches whose activations fit on no device.

    1. outputs of the towers, a chunk of rows at a time: nothing else is kept but the random state before each chunk
    2. the loss on the outputs of the whole batch, which knows nothing of chunks, and its gradient at the outputs
    3. chunk by chunk, from the same random state: the outputs again, with activations, and their part of the gradient

A chunk is a `torch.utils.checkpoint`, so that 3 is part of autograd's backward pass, one chunk after another. Whatever
uses gradients works as without chunks: parameters of the head that the loss reads, scaled losses, two gradients of one
graph (NPC), and DistributedDataParallel, which averages once, after the last chunk, however many chunks a process has.
Towers whose outputs have no gradient run once.

Exact if each row of the outputs depends only on its own row of the inputs. Batch norm in training breaks this, and runs
refuse it (`runs/batch_checks.py`).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clip_itm.image_processing import PIXEL_KEYS

Outputs = Tensor | tuple[Tensor, ...]
# what the towers read from a batch
IMAGE_INPUTS = (*PIXEL_KEYS, "image_features", "image_tokens", "image_mask")
TEXT_INPUTS = ("input_ids", "attention_mask", "text_features")


class Chunks(NamedTuple):
    """How the towers see a batch: `size` rows at a time; `normalize`, if given, turns bytes into `pixel_values`."""

    size: int
    normalize: Callable[[Tensor], Tensor] | None = None


@contextmanager
def encoding_in_chunks(model: nn.Module, chunks: Chunks | None) -> Iterator[None]:
    """Within it, the towers of an `ItmModel` run on chunks (None: on whole batches) for the loss."""
    model.chunks = chunks
    try:
        yield
    finally:
        model.chunks = None


def in_chunks(encode: Callable[..., Outputs], inputs: Mapping[str, Tensor | None], chunks: Chunks | None) -> Outputs:
    """`encode(**inputs)`, computed in chunks, and again in the backward pass.

    `inputs`: tensors [N, ...], or None; `encode` returns a tensor [N, ...] or a NamedTuple of such tensors.

    Example:
        >>> in_chunks(lambda x: 2 * x, {"x": torch.arange(5.0)}, Chunks(size=2))
        tensor([0., 2., 4., 6., 8.])
    """
    given = {name: rows for name, rows in inputs.items() if rows is not None}
    if chunks is None:
        return encode(**given)

    def encode_chunk(chunk: dict[str, Tensor]) -> Outputs:
        if chunks.normalize is not None and "pixel_values" in chunk:
            chunk = chunk | {"pixel_values": chunks.normalize(chunk["pixel_values"])}
        return encode(**chunk)

    count, size = len(next(iter(given.values()))), chunks.size
    if count <= size:
        return encode_chunk(given)
    found = []
    for start in range(0, count, size):
        chunk = {name: rows[start : start + size] for name, rows in given.items()}
        if torch.is_grad_enabled():
            found.append(checkpoint(encode_chunk, chunk, use_reentrant=False))
        else:
            found.append(encode_chunk(chunk))
    if isinstance(found[0], Tensor):
        return torch.cat(found)
    return type(found[0])(*(torch.cat(parts) for parts in zip(*found, strict=True)))
