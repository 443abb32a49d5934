"""Scores of pairs and of made mismatches, against loops over the whole matrix."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_itm.calibration.scores import made_mismatches, score_pairs


def dot(images, texts):
    return images @ texts.T


def negative_distance(images, texts):
    """A similarity of grids [*, T, D] that is no dot product."""
    return -(images[:, None] - texts[None]).square().mean(dim=(2, 3)).sqrt()


def fold(rng, images=7, captions=17, grid=(6,), whole_numbers=False):
    """Random embeddings; every image has a caption, some have many."""
    pair_image = np.concatenate([np.arange(images), rng.integers(images, size=captions - images)])
    draw = (lambda *shape: rng.integers(-1, 2, shape)) if whole_numbers else (lambda *shape: rng.normal(size=shape))
    return (
        torch.tensor(draw(images, *grid), dtype=torch.float64),
        torch.tensor(draw(captions, *grid), dtype=torch.float64),
        rng.permutation(pair_image),
    )


def twin(matrix, pair_image, mismatch):
    """z, z0, p, p0 from the whole matrix S [P, C], one pair after the other."""
    total, count = matrix.shape
    z, z0, p, p0 = np.empty((4, count))
    for k in range(count):
        i = pair_image[k]
        of_image = np.log(np.mean(np.exp(matrix[i])))
        for c, score, rank in ((k, z, p), (mismatch[k], z0, p0)):
            score[k] = (np.log(np.mean(np.exp(matrix[:, c]))) + of_image) / 2 - matrix[i, c]
            others = [matrix[j, c] for j in range(total) if j != i]
            rank[k] = np.mean([(other > matrix[i, c]) + (other == matrix[i, c]) / 2 for other in others])
    return z, z0, p, p0


def same(found, expected):
    return all(
        np.allclose(getattr(found, name), value, rtol=1e-9, atol=1e-9)
        for name, value in zip(("z", "z0", "p", "p0"), expected, strict=True)
    )


@pytest.mark.parametrize("block", [1, 4, 17, 100])
@pytest.mark.parametrize(
    ("grid", "score", "whole_numbers"),
    [((6,), dot, False), ((6,), dot, True), ((3, 2), negative_distance, False)],
    ids=["vectors", "ties", "grids"],
)
def test_scores_are_those_of_the_whole_matrix(block, grid, score, whole_numbers):
    rng = np.random.default_rng(0)
    images, texts, pair_image = fold(rng, grid=grid, whole_numbers=whole_numbers)
    mismatch = made_mismatches(pair_image, rng)
    matrix = 3 * score(images, texts).numpy()
    found = score_pairs(images, texts, pair_image, mismatch, scale=3.0, score=score, block=block)
    expected = twin(matrix, pair_image, mismatch)
    assert same(found, expected)
    assert found.z.dtype == found.p0.dtype == np.float64
    assert found.images == 7
    assert found.is_made.all()
    if whole_numbers:
        assert (found.p * 6 % 1 == 0.5).any(), "some rank should hang on a tie"
    other = score_pairs(images, texts, pair_image, np.roll(mismatch, 1), scale=3.0, score=score, block=block)
    assert not np.allclose(other.z0, found.z0)


def test_scores_in_float32_agree_with_those_in_float64():
    rng = np.random.default_rng(1)
    images, texts, pair_image = fold(rng, 40, 200, (16,))
    mismatch = made_mismatches(pair_image, rng)
    wide, narrow = (
        score_pairs(images.to(kind), texts.to(kind), pair_image, mismatch, scale=2.0, score=dot, block=64)
        for kind in (torch.float64, torch.float32)
    )
    assert np.abs(wide.z - narrow.z).max() < 1e-4
    assert np.abs(wide.p - narrow.p).max() <= 1 / 39
    assert narrow.z.dtype == np.float64


def test_large_scales_do_not_overflow():
    rng = np.random.default_rng(2)
    images, texts, pair_image = fold(rng)
    mismatch = made_mismatches(pair_image, rng)
    found = score_pairs(images.float(), texts.float(), pair_image, mismatch, scale=1e4, score=dot, block=5)
    assert np.isfinite([found.z, found.z0, found.p, found.p0]).all()


@pytest.mark.parametrize("block", [2, 5, 30])
def test_candidates_that_are_all_of_them_change_nothing(block):
    rng = np.random.default_rng(3)
    images, texts, pair_image = fold(rng, 8, 30)
    mismatch = made_mismatches(pair_image, rng)
    settings = {"scale": 2.0, "score": dot, "block": block}
    whole = score_pairs(images, texts, pair_image, mismatch, **settings)
    for candidates in (30, 8, 29):  # of images and captions, of images alone
        some = score_pairs(images, texts, pair_image, mismatch, **settings, candidates=candidates, rng=rng)
        assert np.array_equal(some.p, whole.p)
        assert np.array_equal(some.p0, whole.p0)
        assert np.allclose(some.z, whole.z, rtol=0, atol=1e-9 if candidates == 30 else 3)
    assert not np.allclose(some.z, whole.z)


def test_few_candidates_estimate_the_means_over_all():
    """Over many draws, exp of twice the score is unbiased but for the curvature of the logarithm, and p is unbiased."""
    rng = np.random.default_rng(4)
    images, texts, pair_image = fold(rng, 12, 24)
    images, texts = images / 3, texts / 3
    mismatch = made_mismatches(pair_image, rng)
    whole = score_pairs(images, texts, pair_image, mismatch, scale=1.0, score=dot, block=7)
    draws = [
        score_pairs(images, texts, pair_image, mismatch, 1.0, dot, block=7, candidates=6, rng=rng) for _ in range(400)
    ]
    assert np.abs(np.mean([draw.z for draw in draws], axis=0) - whole.z).max() < 0.02
    assert np.abs(np.mean([draw.z0 for draw in draws], axis=0) - whole.z0).max() < 0.02
    assert np.abs(np.mean([draw.p for draw in draws], axis=0) - whole.p).max() < 0.05
    assert np.abs(np.mean([draw.p0 for draw in draws], axis=0) - whole.p0).max() < 0.05
    assert np.std([draw.z for draw in draws], axis=0).min() > 0


def test_ranks_are_uniform_for_captions_that_have_nothing_to_do_with_their_image():
    """Whatever the captions are: here every one of them is near a few popular images, which spoils other scores."""
    rng = np.random.default_rng(5)
    images = torch.tensor(rng.normal(size=(400, 8)) + 3 * np.eye(8)[0])
    texts = torch.tensor(rng.normal(size=(2000, 8)) * rng.gamma(1, size=(2000, 1)) + np.eye(8)[0])
    pair_image = rng.permutation(np.repeat(np.arange(400), 5))
    mismatch = made_mismatches(pair_image, rng)
    found = score_pairs(images, texts, pair_image, mismatch, scale=1.0, score=dot, block=300)
    for ranks in (found.p, found.p0):
        parts = np.histogram(ranks, 10, (0, 1))[0]
        assert ((parts - 200) ** 2 / 200).sum() < 27.9  # chi-square, 9 degrees of freedom, 1 in 1,000
        assert abs(ranks.mean() - 0.5) < 4 * np.sqrt(1 / 12 / 2000)
    spread = np.histogram(found.z, 10)[0]
    assert ((spread - 200) ** 2 / 200).sum() > 27.9


def test_the_score_knows_right_from_wrong():
    rng = np.random.default_rng(6)
    images = torch.nn.functional.normalize(torch.tensor(rng.normal(size=(50, 32))), dim=1)
    found = score_pairs(images, images, np.arange(50), np.roll(np.arange(50), 1), scale=20.0, score=dot, block=16)
    assert (found.p == 0).all()
    assert found.z.max() < found.z0.min()


@given(st.lists(st.integers(0, 6), min_size=2, max_size=40), st.integers(0, 5))
@settings(deadline=None)
def test_no_mismatch_is_of_the_same_image_where_that_is_possible(image, seed):
    image = np.array(image)
    if len(set(image)) < 2:
        with pytest.raises(ValueError, match="at least two images"):
            made_mismatches(image, np.random.default_rng(seed))
        return
    mismatch = made_mismatches(image, np.random.default_rng(seed))
    assert sorted(mismatch) == list(range(len(image)))
    most = np.unique(image, return_counts=True)[1].max()
    assert (image[mismatch] == image).sum() == max(0, 2 * most - len(image))
    assert np.array_equal(mismatch, made_mismatches(image, np.random.default_rng(seed)))


def test_every_other_caption_is_as_likely():
    image = np.repeat(np.arange(4), 2)
    seen = np.zeros((8, 8))
    for seed in range(4000):
        seen[np.arange(8), made_mismatches(image, np.random.default_rng(seed))] += 1
    allowed = image[:, None] != image
    assert (seen[~allowed] == 0).all()
    assert (np.abs(seen[allowed] / 4000 - 1 / 6) < 0.04).all()


def test_mismatches_do_not_move_captions_of_an_image_together():
    image = np.repeat(np.arange(500), 5)
    to = image[made_mismatches(image, np.random.default_rng(0))].reshape(500, 5)
    assert np.mean([len(set(row)) for row in to]) > 4.9


def test_what_cannot_be_scored_is_refused():
    rng = np.random.default_rng(7)
    images, texts, pair_image = fold(rng)
    mismatch = made_mismatches(pair_image, rng)

    def refused(message, images=images, texts=texts, pair_image=pair_image, mismatch=mismatch, block=4, **more):
        with pytest.raises(ValueError, match=message):
            score_pairs(images, texts, pair_image, mismatch, 1.0, dot, block, **more)

    refused("no permutation", mismatch=np.zeros_like(mismatch))
    refused("go from 0 to 7", pair_image=pair_image + (pair_image == 6))
    refused("at least two", images=images[:1], pair_image=np.zeros_like(pair_image))
    refused("for each of 17 captions", pair_image=pair_image[:-1])
    refused("block >= 1", block=0)
    refused("pass rng", candidates=3)
    refused("NaN", images=images * torch.nan)
    refused("infinite", images=images.abs() * torch.inf, texts=texts.abs())
