"""Bounded losses in whole runs."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from clip_itm.methods.robust.configuration import FIXED_TEMPERATURE
from clip_itm.runs.train import train
from support.tiny import tiny_recipe

LOSSES = ("gce", "rince", "sce", "tal")


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_training_learns_and_a_fixed_temperature_stays(loss, tmp_path):
    recipe = tiny_recipe(
        tmp_path, head={"kind": "robust", "loss": loss}, noise={"ratio": 0}, training={"epochs": 6, "warmup": 0}
    )
    results = train(recipe)
    assert results["best_val_rsum"] > results["val_history"][0]["eval_rsum"] + 60
    scale = load_file(Path(recipe.output_dir) / "best" / "model.safetensors")["head.logit_scale"].exp().item()
    first = 1 / (0.015 if loss == "tal" else 0.07)
    assert (scale == pytest.approx(first, rel=1e-5)) == (loss in FIXED_TEMPERATURE)
