"""Run by torchrun in test_dive.py: losses and gradients of one global batch, saved by the first process.

torchrun --nproc_per_node 2 -m support.distributed.dive OUT.npz
"""

import sys

import numpy as np
import torch

from clip_itm.backbones.features import Features, FeatureWidths
from clip_itm.distributed import average, gather_constant, num_processes, process_index
from clip_itm.methods.dive import set_similarity
from clip_itm.methods.dive.configuration import DiveHeadConfig
from clip_itm.methods.dive.head import DiveHead
from support.processes import save_from_first

IMAGE_IDS = torch.tensor([0, 1, 0, 2, 3, 0, 4, 4, 5, 5, 1, 2])  # photos repeat within a process and across them
CAPTION_IDS = torch.tensor([0, 1, 2, 0, 3, 1, 0, 0, 4, 5, 6, 1])  # equal within a process, across them, of one photo
MODULE = {"heads": 2, "head_dim": 4, "dropout": 0}
CASES = {
    "hardest": {},
    "all": {"loss": {"negatives": "all"}, "mmd_squared": True},
    "clamped": {"loss": {"negatives": "clamped", "margin": 0.02}, "similarity": {"kind": "chamfer"}},
    "infonce": {"loss": {"kind": "infonce"}, "similarity": {"kind": "match_probability"}, "residual": "gated"},
    "captions left out": {"same_caption": "mask"},
    "pvse": {"module": {"kind": "pvse"}, "residual": "ln_of_sum", "orthogonality_weight": 0.1},
}


def step(case: str) -> dict[str, np.ndarray]:
    """Loss, log and gradients of inputs and parameters: those of the mean over the global batch."""
    torch.manual_seed(0)
    head = DiveHead(DiveHeadConfig(**({"module": MODULE} | CASES[case])), FeatureWidths(8, 6, 10)).double()
    generator = torch.Generator().manual_seed(1)
    pooled = torch.randn(2, len(IMAGE_IDS), 8, generator=generator, dtype=torch.float64)
    tokens = [torch.randn(len(IMAGE_IDS), 5, width, generator=generator, dtype=torch.float64) for width in (6, 10)]
    weight = torch.rand(len(IMAGE_IDS), generator=generator, dtype=torch.float64)
    share = len(IMAGE_IDS) // num_processes()
    own = slice(process_index() * share, (process_index() + 1) * share)
    leaves = [each[own].clone().requires_grad_() for each in (*pooled, *tokens)]
    mask = (torch.arange(5) < torch.arange(1, 13)[:, None])[own]
    images, texts = head.image_outputs(Features(leaves[0], leaves[2])), head.text_outputs(Features(*leaves[1::2], mask))
    captions = {"caption_ids": CAPTION_IDS[own]} if "same_caption" in CASES[case] else {}
    loss, logs = head.loss(images, texts, IMAGE_IDS[own], torch.arange(12)[own], weight[own], **captions)
    loss.backward()
    found = {"loss": loss.detach()} | logs
    found = {name: gather_constant(value.double()[None]).mean() for name, value in found.items()}
    found |= {f"inputs {n}": gather_constant(leaf.grad) / num_processes() for n, leaf in enumerate(leaves)}
    named = [(name, parameter) for name, parameter in head.named_parameters() if parameter.grad is not None]
    gradients = average([parameter.grad for _, parameter in named])
    found |= {f"gradient {name}": value for (name, _), value in zip(named, gradients, strict=True)}
    return {f"{case} {name}": value.numpy().copy() for name, value in found.items()}


def all_cases() -> dict[str, np.ndarray]:
    found = {}
    for case in CASES:
        found |= step(case)
    return found


if __name__ == "__main__":
    set_similarity.BLOCK_BYTES = 4 * 16 * 20  # several blocks, recomputed in the backward pass
    save_from_first(all_cases, sys.argv[1])
