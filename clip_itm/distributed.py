"""The global batch: what W processes compute on their rows equals what one process computes on all of them.

`accelerator.gather` carries no gradient, so contrastive losses need this one. Every process computes the rows of its
own pairs against all columns and returns the mean over its rows; data parallel training averages gradients over
processes, which makes it the gradient of the mean over the global batch (equal numbers of rows everywhere).
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather


def num_processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_index() -> int:
    return dist.get_rank() if num_processes() > 1 else 0


def gather_with_gradient(rows: Tensor) -> Tensor:
    """[b, ...] of every process -> [W * b, ...] in their order; the gradient flows back to each of them."""
    if num_processes() == 1:
        return rows
    return torch.cat(all_gather(rows.contiguous()))


def gather_constant(rows: Tensor) -> Tensor:
    """The same for ids and other constants: [b, ...] -> [W * b, ...]."""
    if num_processes() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(num_processes())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)
