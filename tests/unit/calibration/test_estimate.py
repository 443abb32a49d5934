"""Which pairs are wrong and how many: all folds together."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.special import ndtr

from clip_itm.calibration.estimate import judge
from clip_itm.calibration.reliability import calibration_error
from clip_itm.calibration.scores import made_mismatches, score_pairs
from clip_itm.evaluation.detection import auc
from support.two_groups import simulated_folds


def is_whole(judgement, count):
    for name in ("weights", "weights_before_siblings", "z", "z0", "r", "r0"):
        values = getattr(judgement, name)
        assert values.shape == (count,)
        assert values.dtype == np.float64
        assert np.isfinite(values).all(), name
    for weights in (judgement.weights, judgement.weights_before_siblings):
        assert ((weights >= 0) & (weights <= 1)).all()
    assert 0 <= judgement.low <= judgement.high <= 1
    assert 0 <= judgement.share <= 1
    assert 0 <= judgement.residual <= 1
    return True


@pytest.mark.parametrize("level", ["caption", "image"])
@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.9])
def test_weights_are_probabilities_of_two_groups(share, level):
    folds, count, is_right = simulated_folds(np.random.default_rng(0), share, (700, 300), level=level)
    found = judge(folds, count, seed=0)
    assert is_whole(found, count)
    assert found.low < 1 - is_right.mean() < found.high
    assert found.low < found.share < found.high
    assert calibration_error(found.weights_before_siblings, is_right) < 0.03
    assert calibration_error(found.weights, is_right) < 0.04
    assert auc(found.weights, is_right) > auc(-found.z, is_right) - 0.01
    assert found.residual == pytest.approx(
        np.average(~is_right, weights=found.weights), abs=0.02 if share < 0.9 else 0.2
    )


@pytest.mark.parametrize("hard", [0, 0.05, 0.5])
@pytest.mark.parametrize("sizes", [(60, 40), (400, 400), (6000,)])
def test_right_captions_all_have_weight_one(hard, sizes):
    """Though a few that are hard to tell are ranked anywhere: the tail falls, and what lasts of it is nothing."""
    whole = []
    for seed in range(20):
        folds, count, _ = simulated_folds(np.random.default_rng(seed), 0.0, sizes, hard=hard, width=2)
        found = judge(folds, count, seed, siblings=False)
        whole.append(found.share == 0)
        assert is_whole(found, count)
        if found.share == 0:
            assert (found.weights == 1).all()
            assert (found.weights_before_siblings == 1).all()
            assert found.low == found.residual == 0
            assert found.high < (0.2 if sum(sizes) < 500 else 0.05)
    assert np.mean(whole) >= 0.9


@pytest.mark.parametrize(("share", "images"), [(0.01, 6000), (0.02, 3000), (0.05, 1000), (0.2, 150)])
def test_few_wrong_captions_are_found(share, images):
    found, holds = [], []
    for seed in range(20):
        folds, count, _ = simulated_folds(np.random.default_rng(seed), share, (images,), hard=0.05, width=2)
        judgement = judge(folds, count, seed, siblings=False)
        found.append(judgement.share > 0)
        holds.append(judgement.low <= share <= judgement.high)
    assert np.mean(found) >= 0.9
    assert np.mean(holds) >= 0.8


def test_wrong_captions_all_have_hardly_a_weight():
    folds, count, _ = simulated_folds(np.random.default_rng(1), 1.0)
    found = judge(folds, count, seed=0)
    assert is_whole(found, count)
    assert found.share > 0.95
    assert found.weights.mean() < 0.05


@pytest.mark.parametrize("strength", [0.3, 0.7])
@pytest.mark.parametrize("share", [0.0, 0.4])
def test_a_weak_judge_condemns_nobody(share, strength):
    """It ranks right pairs only somewhat better than mismatches: without a wrong caption it would find 30 to 60 %."""
    rng = np.random.default_rng(0)
    folds, count, is_right = simulated_folds(rng, share, strength=strength)
    for fold in folds:
        ranks = ndtr(rng.normal(size=len(fold.pairs)) - strength)
        fold.p[:] = np.where(is_right[fold.pairs], ranks, fold.p)
    found = judge(folds, count, seed=0)
    assert found.is_weak
    assert (found.weights == 1).all()
    assert found.share == found.low == 0
    assert 0.95 > found.high > share


def test_a_judgement_is_a_sentence():
    folds, count, _ = simulated_folds(np.random.default_rng(9), 0.2, (60, 40))
    found = judge(folds, count, seed=0)
    percent = [f"{100 * part:.1f}" for part in (found.share, found.low, found.high)]
    assert found.sentence == f"{percent[0]} % of 500 captions are wrong ({percent[1]} to {percent[2]} %)"
    clean = dataclasses.replace(found, share=0.0, low=0.0, high=0.0123)
    assert clean.sentence == "no wrong captions found (0 to 1.2 %)"
    weak = dataclasses.replace(clean, is_weak=True)
    assert weak.sentence == "how many of 500 captions are wrong is not known (0 to 1.2 %)"


def test_weights_never_rise_with_suspicion():
    folds, count, _ = simulated_folds(np.random.default_rng(2), 0.3)
    found = judge(folds, count, seed=0, siblings=False)
    assert (np.diff(found.weights[np.argsort(found.z)]) <= 0).all()
    assert found.weights is found.weights_before_siblings
    with_siblings = judge(folds, count, seed=0)
    assert np.array_equal(with_siblings.weights_before_siblings, found.weights)
    assert not np.array_equal(with_siblings.weights, found.weights)


def test_the_order_of_pairs_does_not_matter():
    rng = np.random.default_rng(3)
    folds, count, _ = simulated_folds(rng, 0.3, (90, 60))
    found = judge(folds, count, seed=0)
    names = rng.permutation(count)
    shuffled = []
    for fold in folds:
        order, images = rng.permutation(len(fold.pairs)), rng.permutation(fold.images)
        place = np.argsort(order)
        parts = {name: getattr(fold, name)[order] for name in ("z", "z0", "p", "p0", "texts")}
        shuffled.append(
            dataclasses.replace(
                fold,
                pairs=names[fold.pairs[order]],
                mismatch=place[fold.mismatch[order]],
                image=images[fold.image[order]],
                **parts,
            )
        )
    other = judge(shuffled, count, seed=0)
    assert (other.share, other.low, other.high) == pytest.approx((found.share, found.low, found.high))
    assert np.allclose(other.weights[names], found.weights, atol=1e-5)
    assert not np.allclose(other.weights, found.weights, atol=1e-5)


def test_folds_may_change_places_and_a_seed_repeats():
    folds, count, _ = simulated_folds(np.random.default_rng(4), 0.2, (200, 50, 20))
    found, again = judge(folds, count, seed=0), judge(folds, count, seed=0)
    assert (found.low, found.high) == (again.low, again.high)
    assert np.array_equal(found.weights, again.weights)
    other = judge(folds[::-1], count, seed=0)
    assert np.allclose(other.weights, found.weights)
    assert judge(folds, count, seed=1).low != found.low


def test_models_of_other_scales_judge_alike():
    folds, count, _ = simulated_folds(np.random.default_rng(5), 0.3, (300, 300))
    found = judge(folds, count, seed=0)
    folds[1] = dataclasses.replace(folds[1], z=30 * folds[1].z - 400, z0=30 * folds[1].z0 - 400)
    assert np.allclose(judge(folds, count, seed=0).weights, found.weights)


def test_one_caption_an_image():
    folds, count, is_right = simulated_folds(np.random.default_rng(6), 0.3, (1000, 900), captions=1)
    found = judge(folds, count, seed=0)
    assert np.array_equal(found.weights, found.weights_before_siblings)
    assert calibration_error(found.weights, is_right) < 0.03


@pytest.mark.parametrize("pair_image", [[0, 1], [0, 0, 1, 2], [0, 0, 0, 0, 1], [0, 1, 2]])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_hardly_any_data(pair_image, scale):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        pair_image = np.array(pair_image)
        images, texts = (torch.tensor(rng.normal(size=(n, 3))) for n in (3, len(pair_image)))
        mismatch = made_mismatches(pair_image, rng)
        fold = score_pairs(images, texts, pair_image, mismatch, scale, lambda x, y: x @ y.T, block=2)
        fold = dataclasses.replace(fold, texts=texts.float().numpy())
        assert is_whole(judge([fold], len(pair_image), seed), len(pair_image))
    same = dataclasses.replace(fold, z=np.ones(len(pair_image)), z0=np.ones(len(pair_image)))
    assert is_whole(judge([same], len(pair_image), 0), len(pair_image))


def test_an_image_with_most_of_the_captions():
    """Its mismatches are partly its own captions: no evidence of what a wrong pair looks like."""
    folds, count, _ = simulated_folds(np.random.default_rng(7), 0.2, (100,))
    image = np.where(np.arange(count) < 300, 0, folds[0].image)
    mismatch = made_mismatches(image, np.random.default_rng(0))
    fold = dataclasses.replace(folds[0], image=image, mismatch=mismatch)
    assert 0 < (~fold.is_made).sum() < count / 2
    found = judge([fold], count, seed=0)
    spoilt = dataclasses.replace(fold, p0=np.where(fold.is_made, fold.p0, 0))
    assert judge([spoilt], count, seed=0).share == found.share
    assert is_whole(found, count)


def test_folds_hold_every_pair_once():
    folds, count, _ = simulated_folds(np.random.default_rng(8), 0.2, (30, 20))
    for wrong, number in ((folds[:1], count), (folds, count + 1), ([*folds, folds[0]], count), ([], 0)):
        with pytest.raises(ValueError, match="each of"):
            judge(wrong, number, seed=0)
    folds[1] = dataclasses.replace(folds[1], texts=None)
    with pytest.raises(ValueError, match="fold 1 has no vectors"):
        judge(folds, count, seed=0)
    assert is_whole(judge(folds, count, seed=0, siblings=False), count)
