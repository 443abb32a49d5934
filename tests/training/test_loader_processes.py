"""Processes that read photos: weights to the bit as without, over epochs, with memory entries that come late."""

from pathlib import Path

import pytest
import torch

from clip_itm.runs.train import train
from clip_itm.training.trainer import PairLoader
from support.killed_runs import final_state
from support.tiny import tiny_recipe

HEADS = {"clip": {"kind": "clip"}, "npc": {"kind": "npc", "warmup_epochs": 1, "rho": 0.5}}


def end_of(folder: Path, head: dict, workers: int, crop: float) -> dict[str, torch.Tensor]:
    folder.mkdir()
    data = {"num_workers": workers, "random_crop": crop}
    recipe = tiny_recipe(folder, head=head, data=data, training={"epochs": 3, "batch_size": 64})
    results = train(recipe)
    assert 0 < results["waiting"] < 1
    return final_state(Path(recipe.output_dir))


@pytest.mark.parametrize(("method", "crop"), [("clip", 0.5), ("npc", 1.0)])
@pytest.mark.filterwarnings("ignore")
def test_processes_change_nothing(tmp_path, monkeypatch, method, crop):
    started, make = [], PairLoader._get_iterator

    def counting(self):
        started.append(self.num_workers)
        return make(self)

    monkeypatch.setattr(PairLoader, "_get_iterator", counting)
    alone = end_of(tmp_path / "alone", HEADS[method], 0, crop)
    assert started == [0, 0, 0]
    started.clear()
    several = end_of(tmp_path / "several", HEADS[method], 1, crop)
    assert started == ([1] if method == "clip" else [1, 1]), "they live on, unless there are other entries to know"
    assert alone.keys() == several.keys()
    for name, value in several.items():
        torch.testing.assert_close(value, alone[name], rtol=0, atol=0, equal_nan=True)
