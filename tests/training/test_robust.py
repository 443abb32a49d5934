"""Bounded losses in whole runs."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from clip_itm.methods.robust.configuration import FIXED_TEMPERATURE
from clip_itm.methods.robust.trainer import STATE, estimate_share, q_of_share
from clip_itm.runs.train import train
from clip_itm.training.encode import Embeddings
from support.tiny import tiny_recipe
from support.trainers import pieces

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


@pytest.mark.parametrize(("ratio", "limit"), [(0.0, 1000), (0.4, 1000), (0.4, 150)])
def test_the_share_of_wrong_captions_is_found(ratio, limit, tmp_path, monkeypatch):
    """Under a model that knows right captions: embeddings of captions are those of their photos, with noise."""
    monkeypatch.setattr("clip_itm.methods.robust.trainer.IMAGES", limit)
    recipe = tiny_recipe(tmp_path, data={"train_images": 300}, noise={"ratio": ratio}, head={"kind": "robust"})
    data, _, encoder, _ = pieces(recipe)
    vectors = F.normalize(torch.randn(300, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    looked_at = []

    def encode_some(split, images, captions):
        looked_at.append(images)
        image = split.pairs.image[captions]
        around = 0.05 * torch.randn(len(image), 16, generator=torch.Generator().manual_seed(1))
        return Embeddings(vectors[images], F.normalize(vectors[image] + around, dim=1), torch.from_numpy(image))

    monkeypatch.setattr(encoder, "encode_some", encode_some)
    found = estimate_share(data, encoder, seed=0)
    assert len(looked_at[0]) == min(limit, 300)
    of_sample = np.isin(data.train.pairs.image, looked_at[0])
    truth = data.noise.truth(data.train.pairs)
    wrong = 0 if truth is None else 1 - truth[of_sample].mean()
    assert found.share == pytest.approx(wrong, abs=0.1)
    assert found.low <= found.share <= found.high
    assert (found.low > 0) == (ratio > 0)


def test_q_auto_changes_the_loss_once_and_is_kept(tmp_path):
    head = {"kind": "robust", "q": "auto", "q_epochs": 1}
    recipe = tiny_recipe(tmp_path, head=head, training={"epochs": 3})
    *_, trainer = pieces(recipe)
    seen = []
    begin_epoch = trainer.begin_epoch

    def spy(epoch: int) -> None:
        begin_epoch(epoch)
        seen.append(trainer.model.head.options.q)

    trainer.begin_epoch = spy
    trainer.train()
    (entry,) = [logs for logs in trainer.state.log_history if "q" in logs]
    assert entry["step"] == 6
    assert seen == [0.3, entry["q"], entry["q"]]
    assert entry["q"] == q_of_share(entry["wrong_share"]) != 0.3
    run = Path(recipe.output_dir)
    states = {path.parent.name: load_file(path) for path in run.glob(f"checkpoint-*/{STATE}")}
    shares = {name: state["share"].tolist() for name, state in states.items()}
    assert shares["checkpoint-18"] == [entry[name] for name in ("wrong_share", "wrong_share_low", "wrong_share_high")]
    *_, other = pieces(recipe.with_overrides("--output_dir", str(tmp_path / "other")))
    other.load_method_state(run / "checkpoint-18")
    assert other.model.head.options.q == entry["q"]


def test_a_given_q_needs_no_trainer_of_its_own(tmp_path):
    *_, trainer = pieces(tiny_recipe(tmp_path, head={"kind": "robust", "q": 0.5}))
    assert type(trainer).__name__ == "PairTrainer"
    assert trainer.model.head.options.q == 0.5
