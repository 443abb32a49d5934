"""Small runs of several methods, and what a run that was killed has to end with."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from clip_itm.recipe import Recipe
from clip_itm.runs.train import train
from clip_itm.training.callbacks import FinishCallback
from clip_itm.training.checkpoints import last_complete_checkpoint
from support.tiny import tiny_recipe

STEPS = 6  # of an epoch
HEADS = {
    "clip": {"kind": "clip"},
    "npc": {"kind": "npc", "warmup_epochs": 1, "rho": 0.5},
    # pieces of 2 and 3 epochs: labels are replaced in epoch 0, refined in epochs 1, 3 and 4
    "crcl": {
        "kind": "crcl",
        "schedules": [1, 2],
        "frozen_epochs": 1,
        "temperature": 0.2,
        "label_threshold": 0.03,
        "label_momentum": 0.5,
    },
    "polyloss": {"kind": "polyloss", "warmup_epochs": 1, "score_map": "affine"},
    # the queue is full after 2 steps, prototypes begin at step 3 and the graph at step 9
    "aahr": {
        "kind": "aahr",
        "embed_dim": 16,
        "num_heads": 2,
        "pooling_heads": 2,
        "prototypes": 8,
        "queue_length": 64,
        "prototypes_after": 0.5,
        "graph_after": 1.5,
        "momentum": 0.9,
    },
    # all negatives in epoch 0, the hardest from then on
    "dive": {
        "kind": "dive",
        "residual": "gated",
        "module": {"heads": 2, "head_dim": 8, "iterations": 2},
        "loss": {"warmup_epochs": 1},
    },
    # two folds of 3 steps each, and weights between 0 and 1 (made mismatches find nothing in so few photos)
    "crossfit": {"kind": "crossfit", "fold_epochs": 2, "estimate": "mixture", "loss": "mix"},
    "osa": {"kind": "osa", "warmup_epochs": 1, "loss": "gce"},
    "robust": {"kind": "robust", "q": "auto"},
}
EPOCHS = {"clip": 6, "npc": 3, "crcl": 5, "polyloss": 2, "aahr": 3, "dive": 3, "crossfit": 2, "osa": 3, "robust": 3}
COMPARED = {
    "clip": ("optimizer",),
    "npc": ("optimizer", "bank caption_entry", "npc_state seen", "npc_state trial."),
    "crcl": ("optimizer", "labels labels", "labels probabilities"),
    "polyloss": ("optimizer", "model head.score_map.is_set"),
    "aahr": ("optimizer", "aahr_state criterion.", "aahr_state queue.", "aahr_state momentum.", "aahr_state step"),
    "dive": ("optimizer", "model head.similarity"),
    "crossfit": ("optimizer", "pair_weights values", "pair_weights share"),
    "robust": ("optimizer", "robust_state share"),
    "osa": ("optimizer", "osa_state cosines", "osa_state boundary"),
}


def recipe_of(folder: Path, method: str, evaluate_every: int | None) -> Recipe:
    folder.mkdir()
    return tiny_recipe(
        folder,
        head=HEADS[method],
        # dropout and word dropout make the global generator matter; random crops make the epoch matter
        data={"random_crop": 0.6},
        backbone={"word_dropout": 0.2, "image_dropout": 0.2, "text_dropout": 0.1},
        training={"epochs": EPOCHS[method], "save_every": 2, "evaluate_every": evaluate_every},
    )


def final_state(run: Path) -> dict[str, torch.Tensor]:
    """All numbers of the last checkpoint: weights, moments of both optimisers, rates, labels or bank."""
    checkpoint = last_complete_checkpoint(run)
    optimizer = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    state = {"rates": torch.tensor([group["lr"] for group in optimizer["param_groups"]])}
    for number, moments in optimizer["state"].items():
        state |= {f"optimizer {number} {name}": value for name, value in moments.items()}
    for path in checkpoint.glob("*.safetensors"):
        state |= {f"{path.stem} {name}": value for name, value in load_file(path).items()}
    for path in checkpoint.glob("*.npz"):
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files if file[name].dtype.kind in "if"}
        state |= {f"{path.stem} {name}": torch.from_numpy(value) for name, value in arrays.items()}
    return state


def assert_same_end(run: Path, whole: Path, method: str) -> None:
    found, expected = final_state(run), final_state(whole)
    assert found.keys() == expected.keys()
    for part in (*COMPARED[method], "rates", "model backbone"):
        assert any(name.startswith(part) for name in expected), f"{part} would not be compared"
    different = [
        name for name in expected if not torch.allclose(found[name], expected[name], rtol=0, atol=0, equal_nan=True)
    ]
    assert different == []
    results = [json.loads((folder / "results.json").read_text()) for folder in (run, whole)]
    for history in ("val_history", "method_history", "best_step", "best_val_rsum"):
        assert results[0][history] == results[1][history], history


def interrupt_at(step: int, recipe: Recipe) -> None:
    """The run, until its own trainer (not that of a fold) has taken so many steps and begins the next."""

    def interrupt(self, args, state, control, **kwargs):
        if state.global_step == step and args.output_dir == recipe.output_dir:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FinishCallback, "on_step_begin", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(recipe)
