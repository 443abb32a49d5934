"""Weights and boundary of OSA against loops over their definitions, and the head that applies them."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clip_itm.methods.clip.configuration import ClipHeadConfig
from clip_itm.methods.clip.head import ClipHead
from clip_itm.methods.osa.configuration import OsaHeadConfig
from clip_itm.methods.osa.head import OsaHead
from clip_itm.methods.osa.method import OsaMethod
from clip_itm.methods.osa.weights import excess, intended_weights, mismatch_boundary, released_weights
from clip_itm.methods.robust.configuration import RobustHeadConfig
from clip_itm.methods.robust.head import RobustHead
from clip_itm.training.configuration import TrainingSection

IDS = torch.tensor([0, 1, 2, 0, 3, 1])
PAIRS = torch.tensor([3, 0, 7, 5, 1, 2])


def unit(*shape: int, seed: int = 0, shift: float = 0.0) -> torch.Tensor:
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(drawn + shift, dim=-1)


def test_the_boundary_is_the_mean_over_all_mismatches_and_over_no_pair_of_one_image():
    images, texts, ids = unit(2100, 5, shift=0.5), unit(2100, 5, seed=1, shift=0.5), torch.arange(2100) // 3
    found = mismatch_boundary(images, texts, ids)  # more than one block
    cosines = (images @ texts.T).numpy()
    cosines[(ids[:, None] == ids).numpy()] = np.nan
    assert found.beta == pytest.approx(np.nanmean(cosines))
    of_images, of_texts = (np.nanmean(cosines, axis=axis).var(ddof=1) / 2100 for axis in (1, 0))
    assert found.error == pytest.approx(math.sqrt(of_images + of_texts), rel=1e-3)


def test_the_error_of_the_boundary_is_how_far_samples_differ():
    """For few pairs it is a little too large: the noise of single cells counts in rows and in columns."""
    found = [
        mismatch_boundary(
            unit(300, 4, seed=2 * k, shift=0.3), unit(300, 4, seed=2 * k + 1, shift=0.3), torch.arange(300)
        )
        for k in range(200)
    ]
    betas, errors = zip(*found, strict=True)
    assert np.std(betas) == pytest.approx(np.mean(errors), rel=0.15)


def test_pairs_of_one_image_have_no_boundary():
    with pytest.raises(ValueError, match="all pairs are of one image"):
        mismatch_boundary(unit(3, 4), unit(3, 4), torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize("beta", [0.2, -0.3])
def test_weights_against_their_definitions(beta):
    """0 up to the boundary, never negative beyond it, also where a cosine exceeds it by more than 1."""
    cosines = torch.tensor([-0.9, 0.1, 0.2, 0.3, 0.55, 0.8, 1.0], dtype=torch.float64)
    x = excess(cosines, beta)
    largest = min(1.0, 1 - beta)
    for cosine, w, released in zip(
        cosines.tolist(), intended_weights(x).tolist(), released_weights(x, x.max()).tolist(), strict=True
    ):
        expected = -((cosine - beta) ** 2) * (cosine - beta - 1) if beta < cosine < 1 + beta else 0
        assert w == pytest.approx(expected, abs=1e-15)
        share = min(max(cosine - beta, 0), 1) / largest
        assert released == pytest.approx(-(share**2) * (share - 1) * (share + 1), abs=1e-15)
    assert released_weights(x, x.max())[-1] == 0, "the surest pair of a batch has no weight in the released program"


def test_no_weight_anywhere_is_not_nan():
    assert released_weights(torch.zeros(3), torch.tensor(0.0)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("weights", ["intended", "released"])
@pytest.mark.parametrize("loss", ["infonce", "gce", "rince", "sce", "tal"])
def test_the_loss_is_that_of_the_robust_head_times_weights_times_those_of_the_data(loss, weights):
    head = OsaHead(OsaHeadConfig(loss=loss, weights=weights, temperature=0.1)).double()
    images, texts = unit(6, 5), unit(6, 5, seed=1)
    config = ClipHeadConfig(temperature=0.1) if loss == "infonce" else RobustHeadConfig(loss=loss, temperature=0.1)
    plain = (ClipHead if loss == "infonce" else RobustHead)(config).double()
    torch.testing.assert_close(head.loss(images, texts, IDS, PAIRS)[0], plain.loss(images, texts, IDS, PAIRS)[0])
    head.excess, head.unit = torch.tensor([0.0, 0.1, 0.3, 0.2, 0.9, 0.15, 0.8, 0.05], dtype=torch.float64), 0.02
    x = head.excess[PAIRS]
    expected = intended_weights(x) / 0.02 if weights == "intended" else released_weights(x, torch.tensor(0.3))
    own = torch.tensor([1, 0.5, 1, 0, 1, 0.25], dtype=torch.float64)
    for given, factor in ((None, 1), (own, own)):
        found, logs = head.loss(images, texts, IDS, PAIRS, given)
        torch.testing.assert_close(found, (expected * factor * plain.losses(images, texts, IDS)).mean())
        torch.testing.assert_close(logs["weight"], expected.mean())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"warmup_epochs": 5}, "5 epochs of warm-up leave none of the 5"),
        ({"weights": "released", "normalise": "none"}, "relative to each batch, and none does nothing"),
        ({"q": 0.5}, "head.q does nothing with the loss infonce"),
        ({"loss": "gce", "tal_margin": 0.2}, "head.tal_margin does nothing with the loss gce"),
    ],
)
def test_what_does_nothing_or_cannot_work_is_refused(keys, message):
    assert message in OsaHeadConfig(**keys).conflict(TrainingSection(epochs=5))


@pytest.mark.parametrize("keys", [{}, {"warmup_epochs": 4}, {"normalise": "none"}, {"loss": "gce", "q": 0.5}])
def test_what_works_is_not_refused(keys):
    assert OsaHeadConfig(**keys).conflict(TrainingSection(epochs=5)) is None


def test_it_warns_of_an_estimator_that_knows_nothing():
    assert "the text tower of this backbone starts from random weights" in OsaMethod(OsaHeadConfig()).caution(
        "the text tower"
    )
    assert OsaMethod(OsaHeadConfig()).caution(None) is None
    assert OsaMethod(OsaHeadConfig(warmup_epochs=1)).caution("the text tower") is None
