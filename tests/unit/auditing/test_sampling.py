"""A random sample of which every beginning is one, and orders by what a mark decides."""

import numpy as np
import pytest

from clip_itm.auditing.sampling import STRATA, draw_sample, most_informative, strata_of, worst_first
from clip_itm.training.clean_probability import CleanProbability


def _clean(values, ranking=None):
    values = np.asarray(values, dtype=np.float32)
    ranking = np.arange(len(values), dtype=np.float32) if ranking is None else ranking
    return CleanProbability(values, np.asarray(ranking, dtype=np.float32), "by hand", "")


def _mixed(count=1000, seed=0):
    rng = np.random.default_rng(seed)
    return _clean(np.clip(rng.beta(0.3, 0.1, count), 0, 1), rng.normal(size=count))


def test_the_same_seed_gives_the_same_sample_and_another_one_another():
    clean = _mixed()
    first, again, other = (draw_sample(clean, 200, seed) for seed in (3, 3, 4))
    assert np.array_equal(first.pairs, again.pairs)
    assert not np.array_equal(first.pairs, other.pairs)
    assert len(np.unique(first.pairs)) == 200
    assert np.array_equal(draw_sample(clean, 50, 3).pairs, first.pairs[:50])


@pytest.mark.parametrize("stop", [10, 37, 200])
def test_every_beginning_has_all_strata_alike(stop):
    clean = _mixed()
    stratum = strata_of(clean)
    counts = np.bincount(stratum[draw_sample(clean, 200).pairs[:stop]], minlength=STRATA)
    assert counts.max() - counts.min() <= 1


def test_more_is_drawn_where_the_audit_is_uncertain():
    clean = _clean([0.0] * 450 + [0.5] * 100 + [1.0] * 450)
    pairs = draw_sample(clean, 200).pairs
    uncertain = np.mean((pairs >= 450) & (pairs < 550))
    assert 0.18 < uncertain < 0.26  # 100 x .5 of 100 x .5 + 900 x .2, and a tenth of the pairs
    assert (pairs < 450).sum() > 40
    assert (pairs >= 550).sum() > 40


def test_without_doubt_strata_are_quantiles_of_suspicion():
    clean = _clean(np.ones(1000), np.random.default_rng(0).permutation(1000))
    assert np.bincount(strata_of(clean)).tolist() == [100] * STRATA
    assert np.array_equal(np.unique(strata_of(clean)[clean.order()[:100]]), [0])


@pytest.mark.parametrize("first", [50, 200])
def test_weights_make_any_beginning_unbiased(first):
    """The share of wrong ones, weighted, over many samples: wrong where the audit is sure that all is well, too."""
    clean = _mixed(600, seed=1)
    rng = np.random.default_rng(2)
    wrong = rng.random(600) < np.where(clean.values > 0.9, 0.2, 1 - clean.values)
    found = []
    for seed in range(400):
        pairs, weight = (part[:first] for part in draw_sample(clean, 200, seed))
        found.append((weight * wrong[pairs]).sum() / weight.sum())
    assert abs(np.mean(found) - wrong.mean()) < 4 * np.std(found) / 20 + 0.002
    assert np.std(found) > 0


@pytest.mark.parametrize("count", [0, 1, 2, 9, 11, 150])
def test_few_pairs_are_all_drawn(count):
    drawn = draw_sample(_clean(np.linspace(0, 1, count)), 200)
    assert np.array_equal(np.sort(drawn.pairs), np.arange(count))
    assert (drawn.weight > 0).all()


def test_orders():
    clean = _clean([0.9, 0.2, 0.6, 0.4, 0.0])
    assert worst_first(clean).tolist() == [4, 1, 3, 2, 0]
    assert most_informative(clean)[:2].tolist() == [3, 2]
    sure = _clean(np.ones(4), [2, 0, 3, 1])
    assert most_informative(sure).tolist() == worst_first(sure).tolist() == [1, 3, 0, 2]
    assert most_informative(_clean([])).tolist() == []
