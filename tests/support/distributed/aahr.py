"""Run by torchrun in test_aahr.py: two steps of the AAHR head on one global batch, saved by the first process.

torchrun --nproc_per_node 2 -m support.distributed.aahr OUT.npz
"""

import sys

import numpy as np
import torch
from torch import Tensor

from clip_itm.backbones.features import Features, FeatureWidths
from clip_itm.distributed import average, gather_constant, num_processes, process_index
from clip_itm.methods.aahr import triplet
from clip_itm.methods.aahr.head import AahrHead
from support.aahr_golden import small_config
from support.processes import save_from_first

IDS = torch.tensor([0, 1, 0, 2, 3, 0, 4, 4, 5, 5, 1, 2])  # photos repeat within a process and across them
CAPTION_IDS = torch.tensor([0, 1, 2, 1, 0, 3, 4, 5, 6, 0, 7, 0])
LENGTHS = torch.tensor([7, 3, 2, 4, 1, 2, 5, 5, 3, 6, 2, 3])  # the longest caption differs between processes
PARTS = ("triplet", "prototypes", "graph", "regulariser", "queue")


def hardest(weights: Tensor) -> Tensor:
    """In place of a draw, which no two processes share."""
    return weights.argmax(dim=1)


def side(width: int, own: slice, trimmed: bool, seed: int) -> Features:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(12, 7, width, generator=generator, dtype=torch.float64)
    pooled = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    mask = torch.arange(7) < (LENGTHS if trimmed else LENGTHS.flip(0))[:, None]
    longest = int(mask[own].sum(dim=1).max()) if trimmed else 7
    return Features(pooled[own], tokens[own, :longest], mask[own, :longest])


def two_steps() -> dict[str, np.ndarray]:
    """Loss, terms and gradients of both steps, and what the queue and the statistics of batch norm end with."""
    torch.manual_seed(0)
    config = small_config(image_projection="mlp", edge="mlp", queue_length=18, regulariser_weight=1.0, graph_bias=1.5)
    config = config.model_copy(update={"same_caption": "mask"})
    head = AahrHead(config, FeatureWidths(12, 20, 14)).double()
    keys = torch.randn(2, 3, 12, 32, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    share = len(IDS) // num_processes()
    own = slice(process_index() * share, (process_index() + 1) * share)
    head.criterion.queue.write(*keys[:, 2, own], IDS[own] + 3, CAPTION_IDS[own])
    found = {}
    for step in range(2):
        head.zero_grad()
        head.keys = tuple(keys[:, step, own])
        images, texts = side(20, own, False, 10 * step), side(14, own, True, 10 * step + 1)
        outputs = head.image_outputs(images), head.text_outputs(texts)
        loss, logs = head.loss(*outputs, IDS[own], torch.arange(12)[own], caption_ids=CAPTION_IDS[own])
        loss.backward()
        values = {"loss": loss, **logs}
        values = {name: gather_constant(value.detach()[None]).mean() for name, value in values.items()}
        gradients = {name: value.grad for name, value in head.named_parameters() if value.grad is not None}
        values |= dict(zip([f"grad {name}" for name in gradients], average(list(gradients.values())), strict=True))
        found |= {f"{step} {name}": value.numpy().copy() for name, value in values.items()}
    found |= {f"queue {name}": value.numpy() for name, value in head.criterion.queue.state_dict().items()}
    return found | {f"buffer {name}": value.numpy() for name, value in head.named_buffers()}


if __name__ == "__main__":
    triplet.draw_negatives = hardest
    save_from_first(two_steps, sys.argv[1])
