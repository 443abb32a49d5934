"""One caption under many images: no mismatch is made of it, no rank counts the other images, no share is found."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from clip_itm.calibration.equal_captions import EqualCaptions
from clip_itm.calibration.estimate import judge
from clip_itm.calibration.scores import made_mismatches, score_pairs
from clip_itm.methods.osa.weights import mismatch_boundary

RED = 600  # of 1,000 images


def dot(images, texts):
    return images @ texts.T


@st.composite
def numbered(draw) -> tuple[np.ndarray, np.ndarray]:
    """Images, all of them with a pair, and captions of up to 30 pairs."""
    count = draw(st.integers(4, 30))
    image = np.array(draw(st.lists(st.integers(0, count // 2), min_size=count, max_size=count)))
    caption = np.array(draw(st.lists(st.integers(0, 6), min_size=count, max_size=count)))
    return np.unique(image, return_inverse=True)[1], caption


@given(numbered())
def test_what_fits_and_which_other_images_have_a_caption(sides):
    image, caption = sides
    equal, count = EqualCaptions(image, caption), len(image)
    captions_of = [set(caption[image == i].tolist()) for i in range(image.max() + 1)]
    k, m = (grid.ravel() for grid in np.meshgrid(np.arange(count), np.arange(count)))
    expected = [caption[other] in captions_of[image[pair]] for pair, other in zip(k, m, strict=True)]
    assert equal.fits(k, m).tolist() == expected
    pairs = np.arange(count)[::-1]
    images, place = equal.other_images(pairs)
    found = {(int(i), int(p)) for i, p in zip(images, place, strict=True)}
    assert len(found) == len(images)
    assert found == {
        (i, p)
        for p, pair in enumerate(pairs)
        for i, own in enumerate(captions_of)
        if caption[pair] in own and i != image[pair]
    }


@given(numbered(), st.integers(0, 99))
def test_a_mismatch_is_never_a_caption_that_fits_where_another_is_found(sides, seed):
    image, caption = sides
    if len(set(image.tolist())) < 2 or len(set(caption.tolist())) < 2:
        return
    equal = EqualCaptions(image, caption)
    mismatch = made_mismatches(image, np.random.default_rng(seed), equal)
    assert sorted(mismatch.tolist()) == list(range(len(image)))
    again = made_mismatches(image, np.random.default_rng(seed), equal)
    assert np.array_equal(again, mismatch)


def test_four_hundred_red_mugs_of_a_thousand_get_other_captions():
    caption = np.concatenate([np.zeros(400, dtype=np.int64), np.arange(1, 601)])
    equal = EqualCaptions(np.arange(1000), caption)
    mismatch = made_mismatches(np.arange(1000), np.random.default_rng(0), equal)
    assert sorted(mismatch.tolist()) == list(range(1000))
    assert (caption[mismatch] != caption).all()
    with pytest.raises(ValueError, match="all 1000 captions are equal: no mismatch can be made of them"):
        made_mismatches(np.arange(1000), np.random.default_rng(0), EqualCaptions(np.arange(1000), np.zeros(1000)))
    mostly = EqualCaptions(np.arange(1000), np.where(caption < 300, 0, caption))  # seven in ten: not all can be helped
    mismatch = made_mismatches(np.arange(1000), np.random.default_rng(0), mostly)
    assert sorted(mismatch.tolist()) == list(range(1000))
    assert mostly.fits(np.arange(1000), mismatch).sum() == pytest.approx(400, abs=10)


def twin(matrix, image, caption, mismatch):
    """z, z0, p, p0 from the whole matrix [P, C], one pair after the other, by sets of captions."""
    total, count = matrix.shape
    captions_of = [set(caption[image == i].tolist()) for i in range(total)]
    z, z0, p, p0 = np.empty((4, count))
    for k in range(count):
        i = image[k]
        own = [c for c in range(count) if image[c] == i]
        rivals = [c for c in range(count) if caption[c] not in captions_of[i]]
        others = np.mean(np.exp(matrix[i, rivals])) if rivals else 0
        of_image = np.log((np.exp(matrix[i, own]).sum() + (count - len(own)) * others) / count)
        for c, score, rank in ((k, z, p), (mismatch[k], z0, p0)):
            rivals = [j for j in range(total) if caption[c] not in captions_of[j]]
            others = np.mean(np.exp(matrix[rivals, c])) if rivals else 0
            of_text = np.log((np.exp(matrix[image[c], c]) + (total - 1) * others) / total)
            score[k] = (of_text + of_image) / 2 - matrix[i, c]
            # with the image that the caption came with, unless it is the one that is ranked
            rivals = [j for j in {*rivals, image[c]} if j != i]
            against = [(matrix[j, c] > matrix[i, c]) + (matrix[j, c] == matrix[i, c]) / 2 for j in rivals]
            rank[k] = np.mean(against) if rivals else 0.5
    return z, z0, p, p0


@pytest.mark.parametrize("block", [1, 4, 100])
@pytest.mark.parametrize("seed", range(4))
def test_scores_are_those_of_the_whole_matrix_without_what_fits(block, seed):
    rng = np.random.default_rng(seed)
    image = rng.permutation(np.concatenate([np.arange(9), rng.integers(9, size=12)]))
    caption = rng.integers(9, size=21)
    images, texts = torch.tensor(rng.normal(size=(9, 6))), torch.tensor(rng.normal(size=(21, 6)))
    equal = EqualCaptions(image, caption)
    mismatch = made_mismatches(image, rng, equal)
    found = score_pairs(images, texts, image, mismatch, 2.0, dot, block, equal=equal)
    expected = twin(2 * (images @ texts.T).numpy(), image, caption, mismatch)
    for name, values in zip(("z", "z0", "p", "p0"), expected, strict=True):
        made = found.is_made if name.endswith("0") else np.ones(21, dtype=bool)  # what is no mismatch says nothing
        np.testing.assert_allclose(getattr(found, name)[made], values[made], rtol=1e-9, atol=1e-9)
    assert (found.is_made == ~equal.fits(np.arange(21), mismatch)).all()
    few = score_pairs(images, texts, image, mismatch, 2.0, dot, block, candidates=20, rng=rng, equal=equal)
    np.testing.assert_array_equal(few.p, found.p)  # 20 candidates are all images, and all but one of the captions
    assert np.abs(few.z - found.z).max() < 2


@pytest.mark.parametrize("candidates", [None, 6])
def test_captions_that_differ_change_nothing(candidates):
    rng = np.random.default_rng(3)
    image = rng.permutation(np.repeat(np.arange(8), 3))
    images, texts = torch.tensor(rng.normal(size=(8, 6))), torch.tensor(rng.normal(size=(24, 6)))
    mismatch = made_mismatches(image, rng)
    one, other = (
        score_pairs(images, texts, image, mismatch, 2.0, dot, 5, candidates, np.random.default_rng(0), equal)
        for equal in (None, EqualCaptions(image, np.arange(24)))
    )
    for name in ("z", "z0", "p", "p0", "is_made"):
        assert np.array_equal(getattr(one, name), getattr(other, name))


def products(shuffled: float) -> tuple[torch.Tensor, torch.Tensor, np.ndarray, np.ndarray]:
    """Embeddings of 1,000 images and of their captions, of which 600 say "red mug"; numbers; which pairs are right."""
    rng = np.random.default_rng(0)
    caption = np.where(np.arange(1000) < RED, 0, np.arange(1000))
    meaning = F.normalize(torch.tensor(rng.normal(size=(1000, 24))), dim=1)[caption]
    images = F.normalize(meaning + 0.1 * torch.tensor(rng.normal(size=(1000, 24))), dim=1)
    source = np.arange(1000)
    moved = rng.permutation(1000)[: round(1000 * shuffled)]
    source[moved] = np.roll(moved, 1)
    return images, meaning[source], caption[source], caption[source] == caption


@pytest.mark.parametrize("shuffled", [0.0, 0.2, 0.5])
def test_the_share_of_wrong_captions_is_what_the_texts_say(shuffled):
    images, texts, caption, is_right = products(shuffled)
    equal, image = EqualCaptions(np.arange(1000), caption), np.arange(1000)
    judged = {}
    for name, known in (("texts", equal), ("photos", None)):
        rng = np.random.default_rng(1)
        mismatch = made_mismatches(image, rng, known)
        fold = score_pairs(images, texts, image, mismatch, 20.0, dot, 256, equal=known)
        judged[name] = judge([fold], 1000, 0, siblings=False)
    wrong = 1 - is_right.mean()
    found = judged["texts"]
    assert found.low <= wrong + 1e-9
    assert found.high >= wrong - 0.01
    # a mug whose caption was exchanged still fits "red mug", which the texts do not say: such mismatches are none
    assert found.share == pytest.approx(wrong, abs=0.01 + 0.2 * shuffled)
    assert found.weights[is_right].mean() > 0.95
    if shuffled:  # by photos alone, the other mugs that fit as well hide what is wrong
        assert found.weights[~is_right].mean() < 0.2
        assert judged["photos"].weights[~is_right].mean() > found.weights[~is_right].mean() + 0.05


def test_beta_of_osa_is_that_of_captions_that_differ():
    images, texts = torch.eye(4), torch.tensor([[1.0, 0, 0, 0], [1, 0, 0, 0], [0, 0.6, 0.8, 0], [0, 0.8, 0, 0.6]])
    ids, captions = torch.arange(4), torch.tensor([0, 0, 1, 2])
    cells = [images[i] @ texts[j] for i in range(4) for j in range(4) if captions[i] != captions[j]]
    found = mismatch_boundary(images, texts, ids, captions)
    assert found.beta == pytest.approx(float(sum(cells)) / len(cells))
    assert found.beta < mismatch_boundary(images, texts, ids).beta
    assert mismatch_boundary(images, texts, ids, ids) == mismatch_boundary(images, texts, ids)
