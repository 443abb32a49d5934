"""What the other captions of an image say of one."""

import dataclasses

import numpy as np
import pytest

from clip_itm.calibration import siblings
from clip_itm.calibration.reliability import calibration_error
from clip_itm.calibration.scores import FoldScores, made_mismatches
from clip_itm.calibration.siblings import has_siblings, sibling_features, with_siblings
from clip_itm.calibration.weights import clean_probability
from clip_itm.evaluation.detection import auc
from support.two_groups import simulated_fold


def uneven_fold(rng, counts=(1, 2, 2, 3, 7, 1, 3)) -> FoldScores:
    image = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    texts = rng.normal(size=(len(image), 5))
    texts = (texts / np.linalg.norm(texts, axis=1, keepdims=True)).astype(np.float32)
    nothing = np.zeros(len(image))
    mismatch = made_mismatches(image, rng)
    return FoldScores(np.arange(len(image)), nothing, nothing, nothing, nothing, mismatch, image, len(counts), texts)


def twin(fold, weights):
    texts = fold.texts.astype(float)
    strangers = np.mean([texts[k] @ texts[fold.mismatch[k]] for k in range(len(texts))])
    features = []
    for k, image in enumerate(fold.image):
        others = [j for j in range(len(texts)) if fold.image[j] == image and j != k]
        total = sum(weights[j] for j in others)
        mean = (sum(weights[j] * (texts[k] @ texts[j]) for j in others) + 0.05 * strangers) / (total + 0.05)
        features.append([mean, max([texts[k] @ texts[j] for j in others if weights[j] > 0.5] + [-0.2])])
    return np.array(features)


@pytest.mark.parametrize("cells", [1, 10, 2**22])
def test_features_are_those_of_a_loop(cells, monkeypatch):
    monkeypatch.setattr(siblings, "CELLS", cells)
    rng = np.random.default_rng(0)
    fold = uneven_fold(rng)
    weights = rng.random(len(fold.image))
    found = sibling_features(fold, weights)
    assert np.allclose(found, twin(fold, weights), atol=1e-6)
    assert (found[:, 1] == -0.2).any()
    assert (found[:, 1] > -0.2).any()


def judged(seed, share, level, strength=2.5):
    fold, is_right = simulated_fold(np.random.default_rng(seed), share, 800, level=level, strength=strength)
    before = clean_probability(fold.z, fold.z0, 1 - is_right.mean())
    return fold, before, with_siblings(sibling_features(fold, before), before, has_siblings(fold.image)), is_right


@pytest.mark.parametrize("share", [0.1, 0.4, 0.6])
def test_siblings_help_where_captions_are_wrong_one_by_one(share):
    for seed in range(3):
        _, before, after, is_right = judged(seed, share, "caption")
        assert 1 - auc(after, is_right) < 0.7 * (1 - auc(before, is_right))
        assert calibration_error(after, is_right) < calibration_error(before, is_right) + 0.01


@pytest.mark.parametrize("share", [0.1, 0.4, 0.6])
def test_siblings_that_are_wrong_together_do_no_harm(share):
    """They agree, as right ones do; what was fitted against mismatches would believe most of them."""
    for seed in range(3):
        _, before, after, is_right = judged(seed, share, "image")
        assert auc(after, is_right) > auc(before, is_right) - 0.01
        assert calibration_error(after, is_right) < 0.04
        assert np.mean(after[~is_right] > 0.5) < np.mean(before[~is_right] > 0.5) + 0.02


def test_features_of_chance_change_hardly_anything():
    fold, before, _, _ = judged(0, 0.4, "caption")
    chance = np.random.default_rng(1).normal(size=(len(before), 2))
    after = with_siblings(chance, before, np.ones(len(before), dtype=bool))
    assert np.abs(after - before).mean() < 0.01
    telling = with_siblings(sibling_features(fold, before), before, np.ones(len(before), dtype=bool))
    assert np.abs(telling - before).mean() > 0.01


def test_images_with_one_caption_keep_their_weights():
    rng = np.random.default_rng(2)
    fold = uneven_fold(rng, counts=[1, 5, 3] * 30)
    weights = rng.random(len(fold.image))
    lonely = ~has_siblings(fold.image)
    after = with_siblings(sibling_features(fold, weights), weights, ~lonely)
    assert lonely.sum() == 30
    assert np.array_equal(after[lonely], weights[lonely])
    assert not np.array_equal(after[~lonely], weights[~lonely])
    assert np.array_equal(with_siblings(np.zeros((5, 2)), weights[:5], np.zeros(5, dtype=bool)), weights[:5])


def test_there_is_nothing_to_learn_where_hardly_a_pair_is_wrong():
    rng = np.random.default_rng(3)
    features, everyone = rng.normal(size=(400, 2)), np.ones(400, dtype=bool)
    weights = np.where(np.arange(400) < 1, 0.0, 1.0)
    assert with_siblings(features, weights, everyone) is weights
    weights = np.where(np.arange(400) < 4, 0.0, 1.0)
    assert with_siblings(features, weights, everyone) is not weights
    assert (with_siblings(features, np.zeros(400), everyone) == 0).all()


def test_another_score_of_strangers_moves_the_mean_only():
    fold = uneven_fold(np.random.default_rng(4))
    weights = np.full(len(fold.image), 0.4)
    other = dataclasses.replace(fold, mismatch=np.arange(len(weights)))  # strangers as like as twins
    one, two = sibling_features(fold, weights), sibling_features(other, weights)
    assert np.array_equal(one[:, 1], two[:, 1])
    assert (two[:, 0] > one[:, 0]).all()
