"""Expected against observed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_itm.calibration.reliability import calibration_error, reliability

LABELLED = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=50)


@given(LABELLED, st.integers(1, 12))
def test_bins_hold_every_pair_once(labelled, bins):
    probability, is_right = map(np.array, zip(*labelled, strict=True))
    found = reliability(probability, is_right, bins)
    assert sum(part.pairs for part in found) == len(labelled)
    assert sum(part.pairs * part.expected for part in found) == pytest.approx(probability.sum())
    assert sum(part.pairs * part.observed for part in found) == pytest.approx(is_right.sum())
    assert [part.expected for part in found] == sorted(part.expected for part in found)
    assert 0 <= calibration_error(probability, is_right, bins) <= 1


def test_the_error_is_the_mean_gap():
    probability = np.array([0.05, 0.05, 0.95, 0.95])
    assert calibration_error(probability, np.array([False, True, True, True])) == pytest.approx((0.45 + 0.05) / 2)
    assert calibration_error(probability, np.array([True, True, False, False])) == pytest.approx(0.95)
    assert calibration_error(np.array([0.0, 1.0]), np.array([False, True])) == 0


def test_probabilities_that_are_calibrated_have_hardly_an_error():
    rng = np.random.default_rng(0)
    probability = rng.random(50_000)
    is_right = rng.random(50_000) < probability
    assert calibration_error(probability, is_right) < 0.015
    assert calibration_error(probability**2, is_right) > 0.1


@pytest.mark.parametrize(
    ("probability", "is_right", "message"),
    [
        ([0.5, 1.1], [True, False], "between 0 and 1"),
        ([0.5, np.nan], [True, False], "between 0 and 1"),
        ([0.5], [True, False], "expected probabilities"),
        ([0.5, 0.5], [1, 0], "expected probabilities"),
        ([], [], "expected probabilities"),
    ],
)
def test_what_is_no_probability_is_refused(probability, is_right, message):
    with pytest.raises(ValueError, match=message):
        reliability(np.array(probability), np.array(is_right))
