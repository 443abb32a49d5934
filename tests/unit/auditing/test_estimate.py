"""How many captions are wrong and which, from embeddings of which the truth is known."""

import numpy as np
import pytest
import torch

from clip_itm.auditing.estimate import Estimate, estimate
from clip_itm.calibration.equal_captions import EqualCaptions
from clip_itm.calibration.reliability import calibration_error
from clip_itm.evaluation.detection import auc
from clip_itm.similarity.cosine import Cosine, unit


def world(share, photos=800, captions=3, level="caption", seed=0, width=32, noise=0.7, outside=False):
    """Unit vectors of photos and captions, the image and text of every pair, and bool [N] which pairs are right.

    A wrong caption is that of another photo; `outside`: of a photo that is not in the set.
    """
    rng = np.random.default_rng(seed)
    image = np.repeat(np.arange(photos), captions)
    themes = rng.normal(size=(2 * photos, width))
    wrong = rng.random(photos)[image] < share if level == "image" else rng.random(len(image)) < share
    other = rng.permutation(photos)[image] if level == "image" else rng.integers(photos, size=len(image))
    other = np.where(other == image, (other + 1) % photos, other) + photos * outside
    of_texts = themes[np.where(wrong, other, image)]
    images = unit(torch.from_numpy(themes[:photos] + noise * rng.normal(size=(photos, width))).float())
    texts = unit(torch.from_numpy(of_texts + noise * rng.normal(size=of_texts.shape)).float())
    return images, texts, image, np.arange(len(image)), ~wrong


def judged(images, texts, image, text, **settings) -> Estimate:
    return estimate(images, texts, image, text, scale=10.0, score=Cosine(), **({"vectors": None} | settings))


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_every_score_is_calibrated_and_finds_the_wrong_ones(share, outside):
    *data, is_right = world(share, outside=outside)
    found = judged(*data, has_loss=True)
    assert set(found.scores) == {"crossfit", "clip", "rank", "lemon", "loss", "siblings"}
    assert found.default == "crossfit"
    assert found.missing == {}
    assert found.low - 0.01 <= 1 - is_right.mean() <= found.high + 0.01
    for name, score in found.scores.items():
        assert auc(score.suspicion, ~is_right) > (0.8 if name == "siblings" else 0.9), name
        assert score.probability is not None, name
        off = abs(found.share - 1 + is_right.mean())  # what the estimate of the share brings along
        assert calibration_error(score.probability, is_right) < 0.04 + off, name
        assert np.corrcoef(score.suspicion, score.probability)[0, 1] < 0, name


@pytest.mark.parametrize("captions", [1, 5])
@pytest.mark.parametrize("photos", [5, 60, 800])
def test_right_captions_are_all_believed(photos, captions):
    *data, _ = world(0.0, photos, captions)
    found = judged(*data)
    assert (found.share, found.low) == (0, 0)
    assert found.high <= (0.02 if photos == 800 else 1)
    for name, score in found.scores.items():
        known = ~np.isnan(score.suspicion)
        assert (score.probability[known] == 1).all(), name


def test_what_five_photos_cannot_have_is_said():
    found = judged(*world(0.0, 5, 1)[:4])
    assert set(found.missing) == {"lemon", "siblings"}
    assert "30 neighbours" in found.missing["lemon"]
    assert set(found.scores) == {"crossfit", "clip", "rank"}


def test_one_photo_is_refused_and_so_is_one_text():
    with pytest.raises(ValueError, match="mismatches are made of the captions of other images"):
        judged(*world(0.0, 1, 4)[:4])
    images, texts, image, text, _ = world(0.0, 10, 1)
    with pytest.raises(ValueError, match="all 10 captions are the same text"):
        judged(images, texts, image, np.zeros_like(text))


def test_captions_that_are_all_wrong_are_all_doubted():
    *data, is_right = world(1.0)
    found = judged(*data)
    assert not is_right.any()
    assert found.share > 0.9
    assert found.high >= 0.95
    assert found.probability.mean() < 0.1


def test_a_score_that_contradicts_the_share_claims_no_probability():
    """Captions of a photo that are wrong together say the same: their distance to each other tells nothing."""
    rng = np.random.default_rng(1)
    images, texts, image, text, is_right = world(0.4, 2500, level="image", seed=2)
    wrong = np.flatnonzero(~is_right)
    other = np.repeat(rng.normal(size=(len(np.unique(image[wrong])), texts.shape[1])), 3, axis=0)
    texts[wrong] = unit(torch.from_numpy(other + 0.3 * rng.normal(size=other.shape)).float())
    found = judged(images, texts, image, text)
    assert found.low - 0.01 <= 1 - is_right.mean() <= found.high + 0.01
    assert found.scores["siblings"].probability is None
    assert "would be wrong" in found.scores["siblings"].why
    for name in ("crossfit", "clip", "rank", "lemon"):
        assert calibration_error(found.scores[name].probability, is_right) < 0.05


def test_one_text_on_many_photos_is_wrong_there():
    """Boilerplate fits all photos alike; it is not a mismatch that was made where a photo gets its own text again."""
    images, texts, image, text, _ = world(0.0, 600, 2)
    boilerplate = np.random.default_rng(3).random(len(image)) < 0.3
    text = np.where(boilerplate, text.max() + 1, text)
    texts[boilerplate] = unit(torch.randn(1, texts.shape[1], generator=torch.Generator().manual_seed(0)))
    found = judged(images, texts, image, text)
    assert found.low <= boilerplate.mean() <= found.high
    assert auc(-found.probability, boilerplate) > 0.9
    assert calibration_error(found.probability, ~boilerplate) < 0.05


def test_a_text_that_is_said_to_fit_all_its_photos_is_not_wrong_there():
    images, texts, image, text, is_right = world(0.1, 600, 2)
    product = np.random.default_rng(3).random(len(image)) < 0.2  # photos of one thing
    product &= is_right
    text = np.where(product, text.max() + 1, text)
    thing = torch.randn(1, texts.shape[1], generator=torch.Generator().manual_seed(0))
    texts[product] = unit(thing)
    images[np.unique(image[product])] = unit(images[np.unique(image[product])] + unit(thing))
    found = judged(images, texts, image, text, equal=EqualCaptions(image, text))
    assert abs(found.share - 1 + is_right.mean()) < 0.05
    assert found.probability[product].mean() > 0.9
    assert found.probability[~is_right].mean() < 0.3
    without = judged(images, texts, image, text)
    strangers = np.median(
        found.scores["crossfit"].suspicion[product] - found.scores["crossfit"].suspicion[~product].mean()
    )
    rivals = np.median(
        without.scores["crossfit"].suspicion[product] - without.scores["crossfit"].suspicion[~product].mean()
    )
    assert strangers < rivals, "photos of the same thing are no rivals"


def test_siblings_of_some_pairs_only():
    images, texts, image, text, is_right = world(0.2)
    alone = np.flatnonzero((image % 2 == 1) & (np.arange(len(image)) % 3 > 0))  # odd photos keep one caption
    stay = np.setdiff1d(np.arange(len(image)), alone)
    found = judged(images, texts[stay], image[stay], text[stay])
    score = found.scores["siblings"]
    np.testing.assert_array_equal(np.isnan(score.suspicion), image[stay] % 2 == 1)
    np.testing.assert_array_equal(np.isnan(score.probability), image[stay] % 2 == 1)
    assert not np.isnan(found.probability).any()
    assert calibration_error(found.probability, is_right[stay]) < 0.04


def test_with_few_candidates_the_answer_is_much_the_same():
    *data, is_right = world(0.3, 700, 2)
    found = judged(*data, candidates=300)
    whole = judged(*data)
    for name, score in found.scores.items():
        if name != "siblings":
            assert np.corrcoef(score.suspicion, whole.scores[name].suspicion)[0, 1] > 0.9, name
            assert auc(score.suspicion, ~is_right) > 0.9, name
    assert found.low <= 1 - is_right.mean() <= found.high


def test_a_similarity_of_more_than_vectors_has_no_lemon():
    *data, _ = world(0.2, 100)
    found = judged(*data, vectors=lambda texts: texts)
    assert "compares more than two vectors" in found.missing["lemon"]
    whole = judged(*data)
    np.testing.assert_allclose(found.probability, whole.probability, atol=1e-6)


def test_a_seed_repeats():
    *data, _ = world(0.2, 100)
    found, again, other = judged(*data), judged(*data), judged(*data, seed=1)
    np.testing.assert_array_equal(found.probability, again.probability)
    assert not np.array_equal(found.probability, other.probability)


def seen_by_a_weak_judge(share, known, photos=1000, captions=2, width=32):
    """Vectors of captions that have little of their photo, and of the fraction `known` alone."""
    rng = np.random.default_rng(0)
    image = np.repeat(np.arange(photos), captions)
    count = len(image)
    wrong = rng.random(count) < share
    owner = np.where(wrong, (image + rng.integers(1, photos, count)) % photos, image)
    images = unit(torch.from_numpy(rng.normal(size=(photos, width))).float())
    strength = np.where(rng.random(count) < known, 0.2 * rng.random(count), 0)[:, None]
    texts = rng.normal(size=(count, width)) / width**0.5 + strength * images[torch.from_numpy(owner)].numpy()
    return images, unit(torch.from_numpy(texts).float()), image, np.arange(count), ~wrong


@pytest.mark.parametrize("known", [0.5, 1])
@pytest.mark.parametrize("share", [0.0, 0.2])
def test_a_judge_that_takes_right_pairs_for_mismatches_calls_none_wrong(share, known):
    """So was a model of photos with drawings: without a single wrong caption, it found 63 % (53 to 66 %)."""
    *data, is_right = seen_by_a_weak_judge(share, known)
    found = judged(*data)
    assert found.is_weak
    assert (found.share, found.low) == (0, 0)
    assert 1 - is_right.mean() < found.high < 0.95
    assert found.probability.min() == 1
    others = [score for name, score in found.scores.items() if name != found.default]
    assert {score.why for score in others if score.probability is None} == {"the model knows such photos too little"}
    assert all(score.probability is None for score in others)


@pytest.mark.parametrize("level", ["caption", "image"])
@pytest.mark.parametrize("noise", [0.3, 0.7, 1.2])
@pytest.mark.parametrize("share", [0.2, 0.6])
def test_a_judge_that_ranks_well_enough_is_not_called_weak(level, noise, share):
    *data, is_right = world(share, level=level, noise=noise)
    found = judged(*data)
    assert not found.is_weak
    assert found.share == pytest.approx(1 - is_right.mean(), abs=0.1)
