"""Area under the ROC curve and precision of the first few, against brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_itm.evaluation.detection import auc, precision_at

LABELLED = st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=30)


def split(labelled) -> tuple[np.ndarray, np.ndarray]:
    scores, is_positive = zip(*labelled, strict=True)
    return np.array(scores, dtype=np.float32), np.array(is_positive)


@given(LABELLED)
def test_auc_is_the_share_of_pairs_in_order(labelled):
    scores, is_positive = split(labelled)
    won = [
        (positive > negative) + (positive == negative) / 2
        for positive in scores[is_positive]
        for negative in scores[~is_positive]
    ]
    assert auc(scores, is_positive) == (pytest.approx(np.mean(won)) if won else None)


def test_auc_of_known_cases():
    wrong = np.array([True, True, False, False])
    assert auc(np.array([4, 3, 2, 1]), wrong) == 1
    assert auc(np.array([1, 2, 3, 4]), wrong) == 0
    assert auc(np.array([-np.inf, np.inf, 0.0, 0.0]), wrong) == 0.5
    assert auc(np.zeros(4), wrong) == 0.5
    assert auc(np.zeros(2), np.ones(2, dtype=bool)) is None


def test_auc_of_many_scores_is_exact_and_fast():
    """10^12 pairs of a positive and a negative: more than a loop could count, more than 32 bits hold."""
    scores = np.arange(2_000_000)
    assert auc(scores, scores % 2 == 1) == pytest.approx(0.5 + 0.5 / 1_000_000, abs=1e-12)


@given(LABELLED, st.data())
@settings(deadline=None, max_examples=30)
def test_precision_is_the_mean_over_orders_of_the_tied(labelled, data):
    scores, is_positive = split(labelled)
    count = data.draw(st.integers(1, len(scores)))
    generator = np.random.default_rng(0)
    orders = [np.lexsort((generator.random(len(scores)), -scores))[:count] for _ in range(1500)]
    assert precision_at(scores, is_positive, count) == pytest.approx(
        np.mean([is_positive[order].mean() for order in orders]), abs=0.06
    )


def test_precision_without_ties_is_a_count():
    scores = np.array([0.1, 0.9, 0.5, 0.7])
    wrong = np.array([True, True, False, False])
    assert [precision_at(scores, wrong, count) for count in (1, 2, 3, 4)] == [1, 1 / 2, 1 / 3, 1 / 2]
    assert precision_at(np.zeros(4), np.array([True, False, False, False]), 2) == 1 / 4


@pytest.mark.parametrize("measure", [auc, lambda scores, labels: precision_at(scores, labels, 1)])
def test_what_cannot_be_measured_is_refused(measure):
    with pytest.raises(ValueError, match="1 of 2 scores are NaN"):
        measure(np.array([0.0, np.nan]), np.array([True, False]))
    with pytest.raises(ValueError, match="expected scores"):
        measure(np.zeros(3), np.array([True, False]))
    with pytest.raises(ValueError, match="expected scores"):
        measure(np.zeros(2), np.array([1, 0]))
    with pytest.raises(ValueError, match="between 1 and the number of scores"):
        precision_at(np.zeros(2), np.array([True, False]), 3)
