"""Run by torchrun (and alone) in test_runs.py and test_sharding.py: a few epochs in float64, and all that a trainer
ends with. With ACCELERATE_USE_FSDP=true the model is cut in parts.

torchrun --nproc_per_node 2 -m support.distributed.run METHOD FOLDER OUT.safetensors
"""

import sys
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from clip_itm.data.pixels import Pixels
from clip_itm.distributed import gather_constant, leave_process_group, process_state
from clip_itm.methods.aahr import triplet
from clip_itm.processing import ItmProcessor
from clip_itm.runs.build import make_trainer
from clip_itm.runs.launch import parts_weights, recipe_decides
from clip_itm.runs.setup import make_encoder, make_model, prepare
from clip_itm.training import sharding
from support.tiny import SMALL, tiny_recipe

SECTIONS = {
    "clip": {"training": {"epochs": 2}},
    # what acts on single weights and on the step, together
    "clip-all": {
        "training": {
            "epochs": 2,
            "ema": 0.9,
            "cache_chunk": 4,
            "max_grad_norm": 0.5,
            "layer_decay": 0.7,
            "lr_multipliers": {"head": 3, "backbone.model.visual": 0.5},
        },
        "backbone": {"freeze_image_blocks": 1, "freeze_text": False},
    },
    "clip-lora": {
        "training": {"epochs": 2, "gradient_accumulation_steps": 2, "activation_checkpointing": True},
        "backbone": {"lora": {"rank": 2}},
    },
    "siglip": {"training": {"epochs": 1}, "head": {"kind": "siglip"}},
    "polyloss": {"training": {"epochs": 1}, "head": {"kind": "polyloss", "score_map": "affine"}},
    "triplet": {"training": {"epochs": 1}, "head": {"kind": "triplet", "similarity": {"kind": "scan", **SMALL}}},
    "npc": {"training": {"epochs": 3}, "head": {"kind": "npc", "warmup_epochs": 1, "rho": 0.5}},
    "npc-ema": {"training": {"epochs": 2, "ema": 0.9}, "head": {"kind": "npc", "warmup_epochs": 1, "rho": 0.5}},
    # the cosine of a pair leads by .018 before training, and by hardly anything in its first epochs
    "clip-guard": {
        "training": {
            "epochs": 3,
            "guard": {"metric": "gap", "drop": 0.01, "action": "lower_rate", "rate_factor": 0.5},
        }
    },
    "npc-released": {
        "training": {"epochs": 1},
        "head": {"kind": "npc", "mode": "released", "rho": 0.5, "trial_moments": "base"},
    },
    "crcl": {
        "training": {"epochs": 3},
        # the labels of the untrained model, replaced in epoch 0, refined in the others
        "head": {
            "kind": "crcl",
            "frozen_epochs": 1,
            "temperature": 0.2,
            "label_threshold": 0.025,
            "initial_labels": "model",
        },
    },
    "robust": {"training": {"epochs": 3}, "head": {"kind": "robust", "q": "auto"}},
    "osa": {"training": {"epochs": 3}, "head": {"kind": "osa", "warmup_epochs": 1}},
    "osa-released": {"training": {"epochs": 2}, "head": {"kind": "osa", "weights": "released", "loss": "gce"}},
    # without dropout: processes would draw masks of their own
    "aahr": {
        "training": {"epochs": 2},
        "head": {
            "kind": "aahr",
            "embed_dim": 16,
            "num_heads": 2,
            "pooling_heads": 2,
            "dropout": 0.0,
            "graph_dropout": 0.0,
            "token_dropout": 0.0,
            "prototypes": 8,
            "queue_length": 64,
            "prototypes_after": 0.5,
            "graph_after": 1,
            "momentum": 0.9,
        },
    },
    "dive": {
        "training": {"epochs": 2},
        "head": {
            "kind": "dive",
            "residual": "gated",
            "module": {"heads": 2, "head_dim": 8, "iterations": 2, "dropout": 0.0},
            "loss": {"warmup_epochs": 1},
        },
    },
    "crossfit": {
        "training": {"epochs": 2},
        "head": {"kind": "crossfit", "fold_epochs": 1, "estimate": "mixture", "loss": "mix"},
    },
}


def main(method: str, folder: str, out: str) -> None:
    state = process_state()
    sections = SECTIONS[method]
    sections["training"] |= {"precision": "fp32", "batches": "random"}
    sections["backbone"] = {**sections.get("backbone", {}), "word_dropout": 0.0}
    recipe = tiny_recipe(Path(folder), **sections)
    prepared = prepare(recipe)
    data = prepared.data
    model, processor = make_model(recipe, data.splits)
    shards, encoder = parts_weights(recipe), make_encoder(recipe, model, processor)
    with recipe_decides(recipe):
        trainer = make_trainer(recipe, *prepared, encoder, resuming=False, shards=shards)
    model.double()
    found = {}
    end_epoch = trainer.end_epoch

    def keep_what_was_seen(epoch: int) -> None:
        found["seen"] = trainer.seen.clone()  # ratio and weight of every pair; forgotten behind the epoch
        end_epoch(epoch)

    if method.startswith("npc"):
        trainer.end_epoch = keep_what_was_seen
    trainer.train()
    weights = model.state_dict()
    if shards:
        require_parts(model, trainer)
    weights = {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in weights.items()}
    found |= {f"weights {name}": value for name, value in weights.items()}
    if method.startswith("npc"):
        found |= {f"step {name}": value for name, value in trainer.step.state_dict().items()}
        found |= {f"trial {name}": value for name, value in trainer.step.trial.items()}
        for name in ("image_entry", "caption_entry", "losses", "clean"):
            found[f"bank {name}"] = torch.from_numpy(getattr(trainer.bank, name))
    if method == "clip-guard":
        found["rate"] = torch.tensor(trainer.guard.rate, dtype=torch.float64)
        found["rates"] = torch.tensor([group["lr"] for group in trainer.optimizer.param_groups], dtype=torch.float64)
    if method == "crcl":
        found |= trainer.head.labels.state_dict()
    if method == "crossfit":
        found["probability"] = torch.from_numpy(trainer.found.ranking)
    if method == "robust":
        found["share"] = torch.tensor(trainer.found, dtype=torch.float64)
    if method.startswith("osa"):
        found |= {"cosines": trainer.look.cosines, "beta": torch.tensor(trainer.look.boundary.beta)}
    if method == "aahr":
        found |= {f"queue {name}": value for name, value in trainer.criterion.queue.state_dict().items()}
        found |= {f"momentum {name}": value for name, value in trainer.momentum.state_dict().items()}
    for name, value in found.items():
        copies = gather_constant(value[None].double())
        assert all(torch.equal(copies[0].nan_to_num(-1), copy.nan_to_num(-1)) for copy in copies), f"{name} differs"
    if state.is_main_process:
        save_file({name: value.contiguous() for name, value in found.items()}, out)
    state.wait_for_everyone()


def require_parts(model, trainer) -> None:
    """Half of all moments lie in each of two processes, and of all weights, but for what has an odd number of rows.

    Weights of npc are whole; half of the moments of its trial optimiser lie in each, too.
    """
    weights = [*model.parameters()]
    trained = sum(value.numel() for value in weights if value.requires_grad)
    optimizers = [trainer.optimizer, *([trainer.step.trial_optimizer] if trainer.slices else [])]
    for optimizer in optimizers:
        moments = [value for state in optimizer.state.values() for value in state.values() if value.ndim]
        assert sum(value.numel() for value in moments) < 0.51 * 2 * trained
    if not trainer.slices:
        assert sum(sharding.local(value).numel() for value in weights) < 0.51 * sum(value.numel() for value in weights)


def pixels_in_double(replace=setattr) -> None:
    """For training, encoding and what asks the processor itself (OSA's look); `replace` may be monkeypatch's."""
    normalize, process = Pixels.normalize, ItmProcessor.__call__

    def processed(*args, **kwargs):
        inputs = process(*args, **kwargs)
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].double()
        return inputs

    replace(Pixels, "normalize", lambda *args: normalize(*args).double())
    replace(ItmProcessor, "__call__", processed)


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)
    triplet.draw_negatives = partial(torch.argmax, dim=1)  # processes would draw negatives of their own
    pixels_in_double()
    main(*sys.argv[1:])
    leave_process_group()  # here, where nothing refers to the trainer any more
