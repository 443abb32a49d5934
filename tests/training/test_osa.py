"""OSA in whole runs: what the estimator saw, when, and what becomes of it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from clip_itm.methods.osa.trainer import STATE, noise_boundary, paired_cosines
from clip_itm.methods.osa.weights import excess, intended_weights, mismatch_boundary
from clip_itm.model import ItmModel
from clip_itm.recipe import parse_recipe
from clip_itm.runs.train import train
from clip_itm.training.clean_probability import CleanProbability
from support.region_data import WIDTH, write_regions
from support.tiny import tiny_recipe
from support.trainers import pieces

WARMUP = {"kind": "osa", "warmup_epochs": 2}
LEARNS = {"epochs": 8, "warmup": 0}  # a model that is trained for two epochs tells some wrong captions


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    recipe = tiny_recipe(
        tmp_path_factory.mktemp("osa"), head=WARMUP, training={"epochs": 4, "warmup": 0, "save_every": 6}
    )
    return recipe, Path(recipe.output_dir), train(recipe)


def test_weights_are_those_of_the_model_at_the_end_of_the_warm_up(tmp_path, monkeypatch):
    recipe = tiny_recipe(tmp_path, head=WARMUP, training={"epochs": 3})
    data, model, encoder, trainer = pieces(recipe)
    seen = {}
    begin_epoch = trainer.begin_epoch

    def spy(epoch: int) -> None:
        before = encoder.encode(data.train)
        state = torch.get_rng_state()
        begin_epoch(epoch)
        assert torch.equal(torch.get_rng_state(), state), "looking must not move the generator"
        seen[epoch] = before, model.head.excess, trainer.look

    trainer.begin_epoch = spy
    trainer.train()
    assert seen[0][1] is None
    assert seen[1][1] is None
    embeddings, x, look = seen[2]
    images, texts = embeddings.images[data.train.pairs.image], embeddings.texts[data.noise.source]
    torch.testing.assert_close(look.cosines, (images * texts).sum(dim=1))
    boundary = mismatch_boundary(images, texts, torch.from_numpy(data.train.pairs.image))  # 200 pairs: all of them
    assert look.boundary == pytest.approx(boundary, abs=1e-9)
    torch.testing.assert_close(x, excess(look.cosines, boundary.beta))
    assert (intended_weights(x).double() / model.head.unit).mean() == pytest.approx(1, rel=1e-6)


def test_mismatches_are_of_other_images(finished):
    recipe, _, _ = finished
    data, _, encoder, trainer = pieces(recipe.with_overrides("--head.warmup_epochs", "0"))
    trainer.begin_epoch(0)
    embeddings = encoder.encode(data.train)
    cosines = (embeddings.images @ embeddings.texts.T)[data.train.pairs.image]
    own = torch.from_numpy(data.train.pairs.image[:, None] == data.train.pairs.image[None])
    others = cosines[:, data.noise.source].masked_fill(own, torch.inf)
    nearest = (others - trainer.look.mismatched[:, None]).abs().min(dim=1).values
    assert nearest.max() < 1e-6


def test_a_run_keeps_what_was_seen_and_says_how_sure_it_is(finished):
    _, run, results = finished
    (entry,) = results["method_history"]
    assert entry["step"] == 12
    assert {"boundary", "boundary_error", "no_weight", "mean_weight", "cosine_auc"} <= entry.keys()
    assert entry["boundary_error"] > 0
    assert entry["no_weight_wrong"] > entry["no_weight_clean"]
    assert not (run / "checkpoint-12" / STATE).exists(), "the warm-up is over when the next epoch begins"
    state = load_file(run / "checkpoint-24" / STATE)
    clean = CleanProbability.load(run / "clean_probability.npz")
    assert np.array_equal(clean.ranking, state["cosines"].numpy())
    order = np.argsort(clean.ranking, kind="stable")
    assert (np.diff(clean.values[order]) >= 0).all()
    assert "made mismatches" in clean.method
    assert results["wrong_pairs"]["auc"] == pytest.approx(entry["cosine_auc"])
    saved = ItmModel.from_pretrained(run / "best")
    assert not any("excess" in name for name in saved.state_dict())


@pytest.mark.slow
def test_training_learns(tmp_path):
    results = train(tiny_recipe(tmp_path, head=WARMUP, noise={"ratio": 0}, training=LEARNS))
    assert results["best_val_rsum"] > results["val_history"][0]["eval_rsum"] + 60


def test_the_boundary_of_the_released_program(tmp_path):
    """Noise goes through both towers; the mean over all cells of the matrix, in blocks or at once."""
    recipe = tiny_recipe(tmp_path, head={"kind": "osa", "weights": "released"})
    _, model, encoder, trainer = pieces(recipe)
    trainer.begin_epoch(0)
    found = [noise_boundary(encoder, 32, np.random.default_rng(1)) for encoder.batch_size in (32, 5)]
    assert found[0].beta == pytest.approx(found[1].beta, abs=1e-6)
    generator = np.random.default_rng(1)
    pixels = torch.from_numpy(generator.random((32, 3, 32, 32), dtype=np.float32))
    ids = torch.from_numpy(generator.integers(100, size=(32, 24)))
    model.eval()
    with torch.no_grad():
        cosines = model.encode_images(pixels) @ model.encode_texts(ids, torch.ones_like(ids)).T
    assert found[0].beta == pytest.approx(float(cosines.mean()), abs=1e-6)
    assert trainer.look.boundary.beta == pytest.approx(found[0].beta, abs=0.05)  # another draw
    assert model.head.unit == 1


def test_an_estimator_that_tells_nothing_ends_the_run(tmp_path):
    recipe = tiny_recipe(tmp_path, head={"kind": "osa"})
    _, model, _, trainer = pieces(recipe)
    model.encode_texts = lambda *args, **kwargs: torch.zeros(len(args[0]), 16)
    with pytest.raises(ValueError, match="no cosine of the 200 pairs exceeds that of unrelated ones"):
        trainer.begin_epoch(0)


def test_noise_images_need_pixels(tmp_path):
    write_regions(tmp_path / "regions")
    content = {
        "output_dir": str(tmp_path / "run"),
        "data": {"source": "regions", "root": str(tmp_path / "regions"), "cache_dir": str(tmp_path / "cache")},
        "backbone": {"kind": "regions", "region_dim": WIDTH, "embed_dim": 16, "word_dim": 8, "min_word_count": 1},
        "head": {"kind": "osa", "weights": "released", "warmup_epochs": 1},
        "training": {"batch_size": 20, "trackers": []},
    }
    with pytest.raises(ValueError, match=r"precomputed regions; use head\.weights: intended"):
        pieces(parse_recipe(content, "regions"))


def test_cosines_pair_by_pair():
    images, texts = torch.eye(3), torch.tensor([[1.0, 0, 0], [0, 0.6, 0.8]])
    found = paired_cosines(images, texts, torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 1, 0]))
    torch.testing.assert_close(found, torch.tensor([1, 0.6, 0.8, 0]))
