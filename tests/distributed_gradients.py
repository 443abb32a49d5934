"""Run by torchrun (and alone) in test_distributed.py: the gradients of one global batch, saved by the first process.

torchrun --nproc_per_node 2 tests/distributed_gradients.py CONFIG.json OUT.npz
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from clip_itm.configuration import ItmConfig
from clip_itm.distributed import leave_process_group, process_state
from clip_itm.model import ItmModel

PAIRS = 8


def main(config_file: str, out: str) -> None:
    state = process_state()
    torch.manual_seed(0)
    config = json.loads(Path(config_file).read_text())
    gradients = {}
    for mode in ("negative", "mask", "positive"):
        model = ItmModel(ItmConfig(backbone=config, head={"kind": "clip", "same_photo": mode})).double().train()
        generator = torch.Generator().manual_seed(1)
        image_ids = torch.tensor([0, 1, 1, 2, 0, 3, 4, 3])  # photos repeat within a process and across them
        pixels = torch.randn(5, 3, 32, 32, generator=generator, dtype=torch.float64)
        input_ids = torch.randint(1, 400, (PAIRS, 6), generator=generator)
        input_ids[:, 0], input_ids[:, -1] = 49406, 49407
        share = PAIRS // state.num_processes
        own = slice(state.process_index * share, (state.process_index + 1) * share)
        photos, photo = torch.unique(image_ids[own], return_inverse=True)
        wrapped = DistributedDataParallel(model) if state.num_processes > 1 else model
        loss = wrapped(
            pixel_values=pixels[photos],
            input_ids=input_ids[own],
            attention_mask=torch.ones_like(input_ids[own]),
            photo=photo,
            image_ids=image_ids[own],
            pair_ids=torch.arange(PAIRS)[own],
        ).loss
        loss.backward()
        for name, parameter in model.named_parameters():
            gradients[f"{mode} {name}"] = parameter.grad.numpy()
    if state.is_main_process:
        np.savez(out, **gradients)
    state.wait_for_everyone()


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave_process_group()  # here, where nothing refers to the wrapped models any more
