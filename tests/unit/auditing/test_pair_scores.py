"""Scores of pairs and of made mismatches: beside loops over all of them, in any blocks, in any order."""

import numpy as np
import pytest
import torch
from scipy.special import ndtri

from clip_itm.auditing.lemon import BETA, GAMMA, TAU1, TAU2, lemon_scores
from clip_itm.auditing.scores import caption_ranks, clip_scores, loss_scores, rank_scores, sibling_scores
from clip_itm.calibration.scores import made_mismatches
from clip_itm.evaluation.detection import auc
from clip_itm.methods.pair_losses import pair_losses
from clip_itm.similarity.cosine import Cosine, unit

K = 5


class Pairs:
    """Embeddings of `photos` photos with 0 to 4 captions each; every fifth text is that of another pair."""

    def __init__(self, photos=17, width=6, seed=0, most=5):
        rng = np.random.default_rng(seed)
        counts = rng.integers(1, most, photos) if most > 1 else np.ones(photos, int)
        self.image = np.repeat(np.arange(photos), counts)
        self.count = len(self.image)
        self.text = np.arange(self.count)
        again = np.arange(0, self.count - 7, 5)
        self.text[again] = self.text[again + 7]
        themes = rng.normal(size=(photos, width))
        self.images = unit(torch.from_numpy(themes).float())
        by_text = themes[self.image] + rng.normal(size=(self.count, width))
        self.texts = unit(torch.from_numpy(by_text[self.text]).float())
        self.mismatch = made_mismatches(self.image, rng)
        self.similarity = (self.images @ self.texts.T).double().numpy()

    @property
    def basics(self):
        return self.images, self.texts, self.image, self.mismatch

    def ranks(self):
        rng = np.random.default_rng(1)
        return rng.random((2, self.count))


@pytest.fixture
def pairs() -> Pairs:
    return Pairs()


def test_clip_is_minus_the_cosine(pairs):
    found = clip_scores(*pairs.basics, Cosine())
    k = np.arange(pairs.count)
    np.testing.assert_allclose(found.pairs, -pairs.similarity[pairs.image, k], atol=1e-6)
    np.testing.assert_allclose(found.made, -pairs.similarity[pairs.image, pairs.mismatch], atol=1e-6)


def slow_caption_rank(pairs, k, caption, chosen) -> float:
    """A loop over the rivals of a caption."""
    row, ahead, rivals = pairs.similarity[pairs.image[k]], 0.0, 0
    for j in chosen:
        if pairs.image[j] != pairs.image[k] and j != caption:
            rivals += 1
            ahead += (row[j] > row[caption] + 1e-9) + 0.5 * (abs(row[j] - row[caption]) <= 1e-9)
    return ahead / rivals


@pytest.mark.parametrize("cells", [1, 100, 2**24])
@pytest.mark.parametrize("some", [False, True])
def test_the_rank_of_a_caption_is_counted_among_captions_of_other_photos(pairs, cells, some):
    chosen = np.arange(0, pairs.count, 3) if some else np.arange(pairs.count)
    found = caption_ranks(*pairs.basics, Cosine(), chosen if some else None, cells)
    for kind, captions in enumerate((np.arange(pairs.count), pairs.mismatch)):
        slow = [slow_caption_rank(pairs, k, captions[k], chosen) for k in range(pairs.count)]
        np.testing.assert_allclose(found[kind], slow)
    assert (pairs.text[pairs.mismatch] != pairs.text).any()


def test_rank_is_the_mean_of_both_directions_as_normal_quantiles(pairs):
    p, p0 = pairs.ranks()
    found = rank_scores(*pairs.basics, Cosine(), p, p0)
    q, q0 = caption_ranks(*pairs.basics, Cosine())
    edges = [1 / (2 * len(pairs.images)), 1 / (2 * pairs.count)]
    for kind, (a, b) in enumerate(((p, q), (p0, q0))):
        slow = [ndtri(np.clip(part, edge, 1 - edge)) for part, edge in zip((a, b), edges, strict=True)]
        np.testing.assert_allclose(found[kind], np.mean(slow, axis=0))


def test_siblings_are_compared_with_the_others_of_the_photo(pairs):
    found = sibling_scores(pairs.texts.numpy(), pairs.image, pairs.mismatch)
    texts = pairs.texts.double().numpy()
    for k in range(pairs.count):
        others = [j for j in range(pairs.count) if pairs.image[j] == pairs.image[k] and j != k]
        for kind, caption in enumerate((k, pairs.mismatch[k])):
            slow = np.mean([1 - texts[caption] @ texts[j] for j in others]) if others else np.nan
            np.testing.assert_allclose(found[kind][k], slow, atol=1e-6)
    assert np.isnan(found.pairs).any()
    assert np.isfinite(found.pairs).any()


@pytest.mark.parametrize("batch_size", [8, 256])
def test_the_loss_of_a_mismatch_is_that_of_its_place_in_the_batch(pairs, batch_size):
    found = loss_scores(*pairs.basics, 10.0, Cosine(), 0, batch_size)
    own = np.arange(pairs.count)
    settings = {"scale": 10.0, "batch_size": batch_size, "similarity": Cosine()}
    np.testing.assert_allclose(
        found.pairs, pair_losses(pairs.images, pairs.texts, pairs.image, own, **settings), atol=1e-5
    )
    for k in range(pairs.count):  # a pair after the other is replaced
        source = own.copy()
        source[k] = pairs.mismatch[k]
        losses = pair_losses(pairs.images, pairs.texts, pairs.image, source, **settings)
        assert found.made[k] == pytest.approx(losses[k], abs=1e-5)


# LEMoN ----------------------------------------------------------------------------------------------------------------


def slow_lemon(pairs, k_pair, caption, chosen) -> float:
    """The formula for one pair; neighbours that tie for the last places are all weighed by what is left for them."""
    images, texts = pairs.images.double().numpy(), pairs.texts.double().numpy()
    x, y = images[pairs.image[k_pair]], texts[caption]

    def far(a, b):
        return 1 - a @ b

    def nearest(candidates, distance, group):
        """(pair, weight) of K pairs; those of a group tie."""
        left, found = K, []
        for own in sorted(
            {group[j] for j in candidates}, key=lambda g: min(distance[j] for j in candidates if group[j] == g)
        ):
            members = [j for j in candidates if group[j] == own]
            found += [(j, min(left, len(members)) / len(members)) for j in members]
            left -= min(left, len(members))
        return found

    photos = [j for j in chosen if pairs.image[j] != pairs.image[k_pair]]
    s_n = sum(
        part
        * far(y, texts[j])
        * np.exp(-TAU1 * far(x, images[pairs.image[j]]) - TAU2 * far(images[pairs.image[j]], texts[j]))
        for j, part in nearest(photos, {j: far(x, images[pairs.image[j]]) for j in photos}, pairs.image)
    )
    captions = [j for j in chosen if pairs.text[j] != pairs.text[caption] and j != k_pair]
    s_m = sum(
        part
        * far(x, images[pairs.image[j]])
        * np.exp(-TAU1 * far(y, texts[j]) - TAU2 * far(images[pairs.image[j]], texts[j]))
        for j, part in nearest(captions, {j: far(y, texts[j]) for j in captions}, pairs.text)
    )
    return far(x, y) + BETA * s_n / K + GAMMA * s_m / K


def lemon(pairs, **settings):
    return lemon_scores(*pairs.basics, pairs.text, k=K, **settings)


@pytest.mark.parametrize("most", [5, 1])
@pytest.mark.parametrize("some", [False, True])
def test_lemon_is_its_formula(most, some):
    pairs = Pairs(seed=3, most=most)
    chosen = np.sort(np.random.default_rng(4).choice(pairs.count, 13, replace=False)) if some else None
    found = lemon(pairs, compared=chosen)
    everyone = range(pairs.count) if chosen is None else chosen.tolist()
    for kind, captions in enumerate((range(pairs.count), pairs.mismatch)):
        slow = [slow_lemon(pairs, k, captions[k], everyone) for k in range(pairs.count)]
        np.testing.assert_allclose(found[kind], slow, atol=2e-6)


def test_the_settings_of_lemon_are_those_of_the_paper():
    from clip_itm.auditing.lemon import NEIGHBOURS

    assert (NEIGHBOURS, BETA, GAMMA, TAU1, TAU2) == (30, 5, 5, 0.1, 5)


def test_lemon_without_enough_neighbours_is_an_error(pairs):
    with pytest.raises(ValueError, match=r"nearest of other photos .* choose a smaller k"):
        lemon_scores(*pairs.basics, pairs.text, k=pairs.count - 2)
    alike = np.zeros_like(pairs.text)
    with pytest.raises(ValueError, match=f"of {pairs.count} pairs {pairs.count} share one"):
        lemon_scores(*pairs.basics, alike, k=K)


# all of them ----------------------------------------------------------------------------------------------------------


def every_score(pairs, cells=2**24):
    p, p0 = np.linspace(0.1, 0.9, pairs.count), np.linspace(0.9, 0.2, pairs.count)
    return {
        "clip": clip_scores(*pairs.basics, Cosine()),
        "rank": rank_scores(*pairs.basics, Cosine(), p, p0, cells=cells),
        "lemon": lemon(pairs, cells=cells),
        "siblings": sibling_scores(pairs.texts.numpy(), pairs.image, pairs.mismatch),
    }


@pytest.mark.parametrize("cells", [1, 64, 1000])
def test_no_score_depends_on_the_size_of_a_block(pairs, cells):
    whole = every_score(pairs)
    for name, found in every_score(pairs, cells).items():
        for kind in (0, 1):
            np.testing.assert_allclose(found[kind], whole[name][kind], atol=1e-6, err_msg=name)


def test_no_score_depends_on_the_order_of_pairs_or_photos(pairs):
    whole, rng = every_score(pairs), np.random.default_rng(5)
    order, photos = rng.permutation(pairs.count), rng.permutation(len(pairs.images))
    other, place = Pairs(), np.argsort(order)
    other.image, other.text = photos[pairs.image[order]], pairs.text[order]
    other.images, other.texts = pairs.images[np.argsort(photos)], pairs.texts[order]
    other.mismatch = place[pairs.mismatch[order]]
    p, p0 = (part[order] for part in (np.linspace(0.1, 0.9, pairs.count), np.linspace(0.9, 0.2, pairs.count)))
    shuffled = {
        "clip": clip_scores(*other.basics, Cosine()),
        "rank": rank_scores(*other.basics, Cosine(), p, p0),
        "lemon": lemon(other),
        "siblings": sibling_scores(other.texts.numpy(), other.image, other.mismatch),
    }
    for name, found in shuffled.items():
        for kind in (0, 1):
            np.testing.assert_allclose(found[kind], whole[name][kind][order], atol=1e-6, err_msg=name)


def test_every_score_tells_mismatches_from_pairs():
    pairs = Pairs(photos=60, width=24)
    wrong = np.repeat([False, True], pairs.count)
    for name, found in every_score(pairs).items():
        both = np.concatenate(found)
        known = np.isfinite(both)
        if name != "rank":  # its ranks among images are made up here
            assert auc(both[known], wrong[known]) > 0.8, name
