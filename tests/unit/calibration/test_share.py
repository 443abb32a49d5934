"""How many pairs are wrong, on ranks of two simulated groups."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_itm.calibration.share import (
    MISFIT,
    TENTHS,
    lasting_shares,
    rank_score,
    share_interval,
    spread_of_right,
    tail_counts,
    tail_shares,
    wrong_share,
)
from support.two_groups import simulated_folds


def draw(seed, share, level="caption", images=(300, 200), **settings):
    """r, r0, image, and the share of this draw."""
    folds, count, is_right = simulated_folds(np.random.default_rng(seed), share, images, level=level, **settings)
    r, r0 = np.empty((2, count))
    image = np.empty(count, dtype=np.int64)
    for number, fold in enumerate(folds):
        r[fold.pairs], r0[fold.pairs] = rank_score(fold.p, fold.images), rank_score(fold.p0, fold.images)
        image[fold.pairs] = fold.image + 1000 * number
    return r, r0, image, 1 - is_right.mean()


@pytest.mark.parametrize("level", ["caption", "image"])
@pytest.mark.parametrize("share", [0, 0.05, 0.2, 0.5, 0.9, 1])
def test_the_share_is_unbiased(share, level):
    errors = []
    for seed in range(60):
        r, r0, _, true = draw(seed, share, level)
        errors.append(wrong_share(r, r0, clipped=False) - true)
    standard_error = np.std(errors) / np.sqrt(len(errors))
    assert abs(np.mean(errors)) <= 3.5 * standard_error
    assert np.std(errors) < 0.06
    if share in (0, 1):
        r, r0, _, _ = draw(0, share, level)
        assert wrong_share(r, r0) == pytest.approx(share, abs=0.1)


def test_one_more_wrong_pair_in_twenty_is_told():
    found = [wrong_share(*draw(0, share)[:2]) for share in (0.05, 0.1, 0.15, 0.2)]
    assert np.diff(found) == pytest.approx(0.05, abs=0.03)


@given(st.integers(0, 5), st.integers(10, 60))
def test_it_is_the_formula_where_no_ranks_tie(seed, count):
    rng = np.random.default_rng(seed)
    r, r0 = rng.normal(size=count), rng.normal(size=count)
    threshold = [np.quantile(r0, u, method="inverted_cdf") for u in TENTHS]
    found = tail_shares(r, r0)
    # the mean over r0 is made 1 - u exactly, by which a pair at the threshold would count in part; there is none
    assert found == pytest.approx([(r > t).mean() / (1 - u) for t, u in zip(threshold, TENTHS, strict=True)])


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(0, 3))
def test_ranks_that_tie_count_in_part(ranks, seed):
    r0 = rank_score(np.array(ranks) / 3, 4)
    assert tail_counts(r0, r0).mean(axis=0) == pytest.approx(1 - np.array(TENTHS))
    assert wrong_share(np.random.default_rng(seed).permutation(r0), r0, clipped=False) == pytest.approx(1)
    assert wrong_share(np.full(5, -9.0), r0) == 0
    assert wrong_share(np.full(5, 9.0), r0, clipped=False) > 1
    assert wrong_share(np.full(5, 9.0), r0) == 1


def test_quantiles_are_kept_within_half_a_rank_of_the_ends():
    found = rank_score(np.array([0, 0.5, 1]), 50)
    assert found == pytest.approx([-2.32635, 0, 2.32635], abs=1e-4)
    mixed = rank_score(np.array([0.0, 0.0]), np.array([50, 5]))
    assert mixed == pytest.approx([-2.32635, -1.28155], abs=1e-4)


@pytest.mark.parametrize("level", ["caption", "image"])
@pytest.mark.parametrize("share", [0.05, 0.5, 1])
def test_the_interval_is_as_wide_as_the_ends_scatter(share, level):
    lows, highs, found, lasting = [], [], [], []
    for seed in range(80):
        r, r0, image, _ = draw(seed, share, level)
        low, high = share_interval(r, r0, image, np.random.default_rng(seed), resamples=300)
        found.append(wrong_share(r, r0, clipped=False))
        lasting.append(lasting_shares(tail_shares(r, r0)))
        assert low < found[-1] < high
        lows.append(low)
        highs.append(high)
    assert np.mean(highs) - np.mean(found) == pytest.approx(1.96 * np.std(found), rel=0.3)
    lowest = np.mean(lasting, axis=0) - 1.96 * np.std(lasting, axis=0)  # where each of the lines alone would end
    assert np.mean(lows) == pytest.approx(lowest.max(), abs=0.3 * (share - lowest.max()))


@pytest.mark.parametrize("level", ["caption", "image"])
@pytest.mark.parametrize("hard", [0, 0.05, 0.5])
@pytest.mark.parametrize("share", [0, 0.02, 0.3, 1])
def test_the_interval_holds_the_share_whatever_the_judge_knows(share, hard, level):
    holds = []
    for seed in range(60):
        r, r0, image, _ = draw(seed, share, level, hard=hard)
        low, high = share_interval(r, r0, image, np.random.default_rng(seed), resamples=200)
        holds.append(low <= share <= high)
    assert np.mean(holds) >= 0.88  # 0.95, less three standard errors


def shares_of(density):
    """Tail shares of a density in the last eight tenths."""
    return np.array([density[k:].mean() for k in range(8)])


def test_what_falls_along_the_tail_does_not_last():
    flat = np.full(8, 0.2)
    assert lasting_shares(flat) == pytest.approx(np.full(3, 0.2))
    for falls in (0.2, 0.5, 0.7):  # what is left of the density from each tenth to the next
        falling = shares_of(falls ** np.arange(8))
        assert (lasting_shares(falling) < 0.25 * falling[4:].mean()).all()
        assert lasting_shares(flat + falling) == pytest.approx(0.2 + lasting_shares(falling))
    assert lasting_shares(np.stack([flat, 2 * flat])) == pytest.approx(np.array([[0.2] * 3, [0.4] * 3]))


def test_the_lines_are_those_of_least_squares():
    density = np.array([0.5, 0.6, 0.2, 0.35, 0.31, 0.22, 0.2, 0.05])
    shares = shares_of(density)
    middles = np.arange(0.25, 1, 0.1)
    ends = [np.polynomial.Polynomial.fit(middles[-m:], density[-m:], 1)(1.0) for m in (4, 6, 8)]
    ends[0] -= MISFIT * (shares[4:].mean() - ends[0])
    assert lasting_shares(shares) == pytest.approx(ends)
    assert shares[4:] == pytest.approx([density[4:].mean(), density[5:].mean(), density[6:].mean(), density[7]])


def test_where_none_is_in_the_tail_the_interval_says_how_few_images_were_seen():
    image = np.repeat(np.arange(100), 5)
    r0 = np.random.default_rng(0).normal(size=500)
    low, high = share_interval(np.full(500, -3.0), r0, image, np.random.default_rng(0))
    assert low == 0
    assert (1 - 0.4 * high) ** 100 == pytest.approx(0.025, abs=0.003)


def test_captions_that_are_wrong_together_count_as_one():
    r, r0, image, _ = draw(0, 0.3, "image")
    low, high = share_interval(r, r0, image, np.random.default_rng(0))
    alone_low, alone_high = share_interval(r, r0, np.arange(len(r)), np.random.default_rng(0))
    assert high - low > 1.1 * (alone_high - alone_low)


def test_the_interval_is_that_of_a_bootstrap_in_a_loop():
    """Thresholds drawn anew with every resample, one resample after the other."""
    r, r0, image, _ = draw(3, 0.4, images=(80, 60))
    rng = np.random.default_rng(0)
    members = [np.flatnonzero(image == one) for one in np.unique(image)]
    shares, lasting = [], []
    for _ in range(1500):
        pairs = np.concatenate([members[one] for one in rng.integers(len(members), size=len(members))])
        shares.append(wrong_share(r[pairs], r0[pairs], clipped=False))
        lasting.append(lasting_shares(tail_shares(r[pairs], r0[pairs])))
    low, high = share_interval(r, r0, image, rng, resamples=1500)
    assert np.quantile(lasting, 0.025, axis=0).max() == pytest.approx(low, abs=0.02)
    assert np.quantile(shares, 0.975) == pytest.approx(high, abs=0.015)


def test_mismatches_that_are_none_do_not_count():
    r, r0, image, _ = draw(0, 0.4)
    is_made = np.arange(len(r)) % 4 != 0
    spoilt, other = np.where(is_made, r0, -9), np.where(is_made, r0, 9)
    found = share_interval(r, spoilt, image, np.random.default_rng(0), is_made)
    assert found == share_interval(r, other, image, np.random.default_rng(0), is_made)
    assert found == pytest.approx(share_interval(r, r0, image, np.random.default_rng(0)), abs=0.04)
    assert share_interval(r, spoilt, image, np.random.default_rng(0))[0] > found[0] + 0.05


def test_nothing_about_the_names_of_images_matters():
    r, r0, image, _ = draw(1, 0.3)
    order = np.random.default_rng(5).permutation(len(r))
    names = np.random.default_rng(6).permutation(5000)[image]
    first = share_interval(r, r0, image, np.random.default_rng(0))
    assert share_interval(r[order], r0[order], names[order], np.random.default_rng(0)) == pytest.approx(first)
    assert share_interval(r, r0, image, np.random.default_rng(1)) != first


@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_the_part_of_right_pairs_among_mismatches(spread):
    """Of 6,000 right pairs `spread` have any rank, as the 4,000 wrong ones have."""
    rng = np.random.default_rng(0)
    ranks = np.concatenate([rng.random(4000), np.where(rng.random(6000) < spread, rng.random(6000), 0.001)])
    found = spread_of_right(rank_score(ranks, 1000), rank_score(rng.random(10_000), 1000), 0.4)
    assert found == pytest.approx(0.8 * spread, abs=0.02)
