"""Run by torchrun (and alone) in test_runs.py: the gradients of one global batch, saved by the first process.

torchrun --nproc_per_node 2 -m support.distributed.gradients CONFIG.json OUT.npz
"""

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from clip_itm.configuration import ItmConfig
from clip_itm.distributed import num_processes, process_index
from clip_itm.model import ItmModel
from support.processes import save_from_first

PAIRS = 8


def gradients_of(config: dict) -> dict[str, np.ndarray]:
    torch.manual_seed(0)
    gradients = {}
    for mode in ("negative", "mask", "positive"):
        model = ItmModel(ItmConfig(backbone=config, head={"kind": "clip", "same_image": mode})).double().train()
        generator = torch.Generator().manual_seed(1)
        image_ids = torch.tensor([0, 1, 1, 2, 0, 3, 4, 3])  # photos repeat within a process and across them
        pixels = torch.randn(5, 3, 32, 32, generator=generator, dtype=torch.float64)
        input_ids = torch.randint(1, 400, (PAIRS, 6), generator=generator)
        input_ids[:, 0], input_ids[:, -1] = 49406, 49407
        share = PAIRS // num_processes()
        own = slice(process_index() * share, (process_index() + 1) * share)
        photos, photo = torch.unique(image_ids[own], return_inverse=True)
        wrapped = DistributedDataParallel(model) if num_processes() > 1 else model
        loss = wrapped(
            pixel_values=pixels[photos],
            input_ids=input_ids[own],
            attention_mask=torch.ones_like(input_ids[own]),
            image_index=photo,
            image_ids=image_ids[own],
            pair_ids=torch.arange(PAIRS)[own],
        ).loss
        loss.backward()
        for name, parameter in model.named_parameters():
            gradients[f"{mode} {name}"] = parameter.grad.numpy()
    return gradients


if __name__ == "__main__":
    config_file, out = sys.argv[1:]
    save_from_first(partial(gradients_of, json.loads(Path(config_file).read_text(encoding="utf-8"))), out)
