"""From scores to probabilities."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_itm.calibration.reliability import calibration_error
from clip_itm.calibration.weights import (
    SMALLEST_NULL_WEIGHT,
    clean_probability,
    density_ratio,
    reweighted_null,
    standardised,
)

SCORES = st.lists(st.integers(-4, 4), min_size=1, max_size=12)


def twin_ratio(x, x0, weight0):
    """h by the max-min formula of isotonic regression, at each of x."""
    values = np.unique(np.concatenate([x, x0]))
    one = np.array([(x == value).sum() / len(x) for value in values])
    all_ = one + np.array([weight0[x0 == value].sum() / weight0.sum() for value in values])
    level = [
        min(
            max(one[low : high + 1].sum() / all_[low : high + 1].sum() for high in range(place, len(values)))
            for low in range(place + 1)
        )
        for place in range(len(values))
    ]
    return np.array(level)[np.searchsorted(values, x)]


@given(SCORES, SCORES, st.integers(0, 9))
@settings(deadline=None)
def test_the_ratio_is_the_isotonic_regression_of_two_groups_of_equal_weight(x, x0, seed):
    x, x0 = np.array(x, dtype=float), np.array(x0, dtype=float)
    weight0 = np.random.default_rng(seed).random(len(x0)) + 0.01
    found = density_ratio(x, x0, weight0)
    assert found == pytest.approx(twin_ratio(x, x0, weight0))
    assert density_ratio(x, x0) == pytest.approx(twin_ratio(x, x0, np.ones(len(x0))))
    assert (np.diff(found[np.argsort(x)]) <= 0).all()
    assert (found > 0).all()


def test_a_mismatch_of_weight_two_counts_as_two():
    rng = np.random.default_rng(0)
    x, x0, times = rng.normal(-1, 1, 300), rng.normal(size=200), rng.integers(1, 4, 200)
    assert density_ratio(x, x0, times) == pytest.approx(density_ratio(x, np.repeat(x0, times)))
    assert density_ratio(x, x0, times) != pytest.approx(density_ratio(x, x0))


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.9])
def test_probabilities_are_those_of_the_densities(share):
    rng = np.random.default_rng(1)
    wrong = rng.random(20_000) < share
    x, x0 = rng.normal(size=20_000) - 2.5 * ~wrong, rng.normal(size=20_000)
    found = clean_probability(x, x0, share)
    true = 1 / (1 + share / (1 - share) * np.exp(2.5 * x + 2.5**2 / 2))
    assert np.abs(found - true).mean() < 0.015
    assert calibration_error(found, ~wrong) < 0.015
    assert np.abs(clean_probability(x, x0 - 1, share) - true).mean() > 2 * np.abs(found - true).mean()


@given(SCORES, SCORES, st.floats(0, 1))
@settings(deadline=None)
def test_weights_are_probabilities_that_never_rise_with_suspicion(x, x0, share):
    x = np.array(x, dtype=float)
    found = clean_probability(x, np.array(x0, dtype=float), share)
    assert ((found >= 0) & (found <= 1)).all()
    assert (np.diff(found[np.argsort(x)]) <= 1e-12).all()
    assert (clean_probability(x, np.array(x0, dtype=float), 0) == 1).all()


def test_a_null_that_looks_like_the_wrong_captions_mends_the_probabilities():
    """Captions differ in how suspicious they look with any image, and the wrong ones are mostly less so."""
    rng = np.random.default_rng(2)
    count, share = 20_000, 0.5
    wrong = rng.random(count) < share
    looks = rng.normal(size=count) - wrong
    owner = rng.permutation(count)
    noise, noise0 = rng.normal(size=(2, count)) * 0.7
    x, x0 = looks + noise - 2.5 * ~wrong, looks[owner] + noise0
    known = reweighted_null((~wrong).astype(float), owner)
    assert calibration_error(clean_probability(x, x0, share), ~wrong) > 0.05
    assert calibration_error(clean_probability(x, x0, share, known), ~wrong) < 0.015


def test_a_mismatch_counts_as_its_caption_is_wrong():
    found = reweighted_null(np.array([1.0, 0.25, 0.0]), np.array([2, 0, 1]))
    assert found == pytest.approx(np.array([1, 0, 0.75]) + SMALLEST_NULL_WEIGHT)


def test_scores_of_models_of_other_scales_compare():
    rng = np.random.default_rng(3)
    z, z0 = rng.normal(size=50), rng.normal(size=50)
    one, other = standardised(z, z0), standardised(20 * z + 7, 20 * z0 + 7)
    assert np.allclose(one, other)
    assert np.median(one[1]) == pytest.approx(0)
    assert one[1].std() == pytest.approx(1)
    equal = standardised(np.array([1.0, 2.0]), np.array([4.0, 4.0]))
    assert np.array_equal(equal[0], [-3, -2])
    assert np.array_equal(equal[1], [0, 0])
