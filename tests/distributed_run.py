"""Run by torchrun (and alone) in test_distributed.py: two epochs of `ItmTrainer` in float64, final weights saved.

torchrun --nproc_per_node 2 tests/distributed_run.py FOLDER OUT.safetensors
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny import tiny_recipe

from clip_itm.distributed import process_state
from clip_itm.training.build import make_trainer
from clip_itm.training.setup import Encoder, make_model, prepare


def main(folder: str, out: str) -> None:
    state = process_state()
    training = {"epochs": 2, "precision": "fp32", "batches": "random"}
    recipe = tiny_recipe(Path(folder), training=training, backbone={"word_dropout": 0.0})
    data, sampler, provenance = prepare(recipe)
    model, processor = make_model(recipe, data.splits)
    encoder = Encoder(recipe, model, processor)
    trainer = make_trainer(recipe, data, sampler, encoder, provenance, resuming=False)
    embeddings = encoder.encode(data.dev)
    trainer.encode_val = lambda: embeddings  # evaluation is not what is compared, and would want float32
    model.double()
    trainer.data_collator = lambda batch: {
        name: value.double() if value.is_floating_point() else value for name, value in batch.items()
    }
    trainer.train()
    if state.is_main_process:
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, out)
    state.wait_for_everyone()


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)
    main(*sys.argv[1:])
