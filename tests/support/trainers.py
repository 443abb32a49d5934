"""Trainers of tiny runs before their first step, recipes of NPC and CRCL, and the reference that their figures have."""

from pathlib import Path

import numpy as np
from datasets import List, Value

from clip_itm.data.rows import Split
from clip_itm.runs.build import make_trainer
from clip_itm.runs.setup import make_encoder, make_model, prepare
from support.tiny import tiny_recipe

RHO = 0.5  # a tiny model that has seen 200 pairs is sure of few
ALPHA, THRESHOLD = 0.6, 0.025  # 1 / 32 candidates is what an untrained model gives


def pieces(recipe):
    prepared = prepare(recipe)
    data = prepared.data
    model, processor = make_model(recipe, data.splits)
    encoder = make_encoder(recipe, model, processor, data.image_cache)
    return data, model, encoder, make_trainer(recipe, *prepared, encoder, resuming=False)


def weigh(split: Split, weights: np.ndarray) -> Split:
    """The split of 40 images with weights [200] of its captions."""
    rows = split.rows.add_column("caption_weights", weights.reshape(40, 5).tolist())
    return Split(split.name, rows.cast_column("caption_weights", List(Value("float32"))))


def npc_recipe(folder: Path, **sections: dict):
    head = {"kind": "npc", "rho": RHO, **sections.pop("head", {})}
    return tiny_recipe(folder, head=head, **sections)


def brute_force_auc(scores, is_positive) -> float:
    scores = np.asarray(scores, dtype=np.float64)
    wins = [(p > n) + (p == n) / 2 for p in scores[is_positive] for n in scores[~is_positive]]
    return float(np.mean(wins))


def crcl_recipe(folder: Path, **sections: dict):
    head = {"kind": "crcl", "temperature": 0.2, "label_momentum": ALPHA, "label_threshold": THRESHOLD}
    return tiny_recipe(folder, head={**head, **sections.pop("head", {})}, **sections)
