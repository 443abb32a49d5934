"""What marks say of all pairs: nothing without marks, little while they agree, everything where they contradict."""

import numpy as np
import pytest

from clip_itm.auditing.marked import FEWEST, by_marks
from clip_itm.auditing.sampling import draw_sample
from clip_itm.calibration.reliability import calibration_error
from clip_itm.data.marked_pairs import MarkedPairs
from clip_itm.data.marks import Mark
from clip_itm.evaluation.detection import auc
from clip_itm.training.clean_probability import CleanProbability

COUNT = 2000


def _judged(share, seed=0, blind=False):
    """Pairs of which a share is wrong, and what an honest audit says; or a blind one, that finds nothing wrong."""
    rng = np.random.default_rng(seed)
    wrong = rng.random(COUNT) < share
    score = rng.normal(np.where(wrong, 1.5, -1.5))
    p = 1 - share / (share + (1 - share) * np.exp(-3 * score)) if share else np.ones(COUNT)
    said = (0.0, 0.0, 0.01) if blind or not share else (share, share - 0.03, share + 0.03)
    values = np.ones(COUNT) if blind else p
    return CleanProbability(values.astype(np.float32), -score.astype(np.float32), "by hand", "", said), wrong


def _marked(pairs, wrong, weight=None, sampled=True, skipped=()):
    order = np.argsort(pairs)
    weight = np.ones(len(pairs)) if weight is None else weight
    marks = [
        Mark("", "skipped" if pairs[k] in skipped else "wrong" if wrong[k] else "right", sampled=sampled, weight=w)
        for k, w in zip(order, weight[order].tolist(), strict=True)
    ]
    return MarkedPairs(pairs[order], marks, COUNT)


def _reviewed(clean, wrong, count, seed=0, errors=0.0):
    drawn = draw_sample(clean, count, seed)
    said = wrong[drawn.pairs] ^ (np.random.default_rng(seed).random(len(drawn.pairs)) < errors)
    return _marked(drawn.pairs, said, drawn.weight)


def test_without_marks_nothing_changes():
    clean, _ = _judged(0.2)
    none = MarkedPairs(np.empty(0, dtype=np.int64), (), COUNT, unmatched=3)
    skipped = _marked(np.arange(50), np.ones(50, dtype=bool), skipped=range(50))
    for marked in (none, skipped):
        found, share = by_marks(clean, marked)
        assert found is clean
        assert share == clean.share


def test_marks_that_are_no_sample_change_their_own_pairs_only():
    clean, _ = _judged(0.2)
    pairs = np.array([3, 5, 9, 700])
    found, share = by_marks(clean, _marked(pairs, np.array([1, 0, 1, 0], dtype=bool), sampled=False))
    assert found.values[pairs].tolist() == [0, 1, 0, 1]
    others = np.setdiff1d(np.arange(COUNT), pairs)
    assert np.array_equal(found.values[others], clean.values[others])
    assert share == clean.share


def test_what_is_marked_bounds_the_share():
    clean, _ = _judged(0.0)
    worst = clean.order()[:100]
    _, share = by_marks(clean, _marked(worst, np.ones(100, dtype=bool), sampled=False))
    assert share == (0.05, 0.05, 0.05)
    _, share = by_marks(clean, _marked(np.arange(COUNT), np.zeros(COUNT, dtype=bool), sampled=False))
    assert share == (0, 0, 0)


def test_right_marks_of_clean_data_let_the_upper_end_fall():
    clean, wrong = _judged(0.0)
    ends = []
    for count in (0, 20, 50, 200):
        found, share = by_marks(clean, _reviewed(clean, wrong, count))
        assert share[:2] == (0, 0)
        assert (found.values == 1).all()
        ends.append(share[2])
    assert ends == sorted(ends, reverse=True)
    assert len(set(ends)) == 4


def test_the_share_rises_from_nothing_where_mismatches_were_blind():
    """With an interval of 95 % that is right, the truth lies outside in more than 7 of 50 draws once in 300 times."""
    clean, wrong = _judged(0.3, blind=True)
    shares = np.array([by_marks(clean, _reviewed(clean, wrong, 100, seed))[1] for seed in range(50)])
    true = wrong.mean()
    assert abs(shares[:, 0].mean() - true) < 0.02
    assert ((shares[:, 1] <= true) & (true <= shares[:, 2])).sum() >= 43
    assert 0.05 < (shares[:, 2] - shares[:, 1]).mean() < 0.2


def test_marks_that_agree_narrow_the_answer_and_keep_it_calibrated():
    clean, wrong = _judged(0.3)
    widths = []
    for count in (20, 100, 200):
        found, (share, low, high) = by_marks(clean, _reviewed(clean, wrong, count, seed=1))
        assert abs(share - wrong.mean()) < 0.025
        assert calibration_error(found.values, ~wrong) < 0.03
        widths.append(high - low)
    assert widths == sorted(widths, reverse=True)


@pytest.mark.parametrize(("share", "blind"), [(0.0, False), (0.2, False), (0.4, False), (0.4, True)])
def test_a_reviewer_who_errs_one_time_in_twenty_breaks_nothing(share, blind):
    clean, wrong = _judged(share, blind=blind)
    before = calibration_error(clean.values, ~wrong)
    found = [by_marks(clean, _reviewed(clean, wrong, 200, seed, errors=0.05)) for seed in range(10)]
    assert abs(np.mean([one[0] for _, one in found]) - wrong.mean()) < 0.035
    assert np.mean([calibration_error(one.values, ~wrong) for one, _ in found]) < max(0.06, before / 4)


def test_probabilities_of_a_blind_audit_become_probabilities():
    clean, wrong = _judged(0.4, blind=True)
    assert calibration_error(clean.values, ~wrong) > 0.35
    found, _ = by_marks(clean, _reviewed(clean, wrong, 200))
    assert calibration_error(found.values, ~wrong) < 0.08
    assert auc(-found.values.astype(float), wrong) > 0.9


def test_marks_of_another_sample_count_by_their_weight():
    """Drawn where another audit was uncertain, which was at wrong pairs: as they are, they would say 50 %."""
    clean, wrong = _judged(0.2, blind=True)
    flat = CleanProbability(clean.values, np.zeros(COUNT, dtype=np.float32), "by hand", "", clean.share)
    rng = np.random.default_rng(9)
    chance = np.where(wrong, 0.4, 0.1)
    shares, naive = [], []
    for _ in range(30):
        pairs = np.flatnonzero(rng.random(COUNT) < chance)
        shares.append(by_marks(flat, _marked(pairs, wrong[pairs], 1 / chance[pairs]))[1][0])
        naive.append(by_marks(flat, _marked(pairs, wrong[pairs]))[1][0])
    assert abs(np.mean(shares) - wrong.mean()) < 0.02
    assert np.mean(naive) > 0.4


@pytest.mark.parametrize("count", [1, 2, 9, 15])
def test_few_pairs(count):
    clean = CleanProbability(np.ones(count, dtype=np.float32), np.arange(count, dtype=np.float32), "", "", (0, 0, 0.5))
    marks = [Mark("", "wrong" if k % 2 else "right", sampled=True) for k in range(count)]
    found, share = by_marks(clean, MarkedPairs(np.arange(count), marks, count))
    assert found.values.tolist() == [1 - k % 2 for k in range(count)]
    assert share[0] == share[1] == share[2] == (count // 2) / count
    fewer = MarkedPairs(np.arange(count)[: FEWEST - 1], marks[: FEWEST - 1], count)
    assert by_marks(clean, fewer)[1][0] == min(count, 9) // 2 / count


def test_a_judge_that_does_not_know_is_not_believed():
    clean, wrong = _judged(0.0)
    marked = _reviewed(clean, wrong, 100)
    ends = [by_marks(clean, marked, believed=believed)[1][2] for believed in (True, False)]
    assert ends[0] < 0.01 < ends[1] < 0.06
