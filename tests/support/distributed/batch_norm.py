"""Run by torchrun in test_gpo.py: two steps of a masked batch norm over one global batch, saved by the first process.

torchrun --nproc_per_node 2 -m support.distributed.batch_norm OUT.npz
"""

import sys

import numpy as np
import torch

from clip_itm.backbones.masked_batch_norm import MaskedBatchNorm
from clip_itm.distributed import gather_constant, num_processes, process_index
from support.processes import save_from_first


def two_steps() -> dict[str, np.ndarray]:
    """Outputs and gradients in the order of the global batch; processes have unequally many rows that count."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2, 6, 5, 3, generator=generator, dtype=torch.float64)
    mask = torch.rand(2, 6, 5, generator=generator) < torch.linspace(0.1, 0.9, 6)[:, None]
    upstream = torch.randn(6, 5, 3, generator=generator, dtype=torch.float64)
    norm, found = MaskedBatchNorm(3).double(), {}
    own = slice(process_index() * 6 // num_processes(), (process_index() + 1) * 6 // num_processes())
    for step in range(2):
        local = rows[step, own].clone().requires_grad_()
        output = norm(local, mask[step, own])
        loss = (output * upstream[own] * mask[step, own, :, None]).sum() / 6
        (gradient,) = torch.autograd.grad(loss, local)
        found[f"output_{step}"], found[f"gradient_{step}"] = (gather_constant(x.detach()) for x in (output, gradient))
    found |= {"running_mean": norm.running_mean, "running_var": norm.running_var}
    return {name: value.numpy().copy() for name, value in found.items()}


if __name__ == "__main__":
    save_from_first(two_steps, sys.argv[1])
