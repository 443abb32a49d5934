"""What would be right: against plain twins, and that nothing is proposed where there is nothing."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clip_itm.auditing import neighbours, suggestions
from clip_itm.auditing.neighbours import nearest
from clip_itm.auditing.suggestions import fits_of, standing, suggest_captions, suggest_photos

SCENES, EACH, WIDTH = 300, 3, 48


def data(seed=0, noise=0.3, spread=0.7):
    """Photos with three captions, unit vectors around one of the photo; `noise` of the captions shuffled.

    Returns images, texts of the pairs, image, owner (the photo each caption was written for), wrong.
    """
    rng = np.random.default_rng(seed)
    scene = rng.normal(size=(SCENES, WIDTH))
    image = np.repeat(np.arange(SCENES), EACH)
    images = unit(scene + spread * rng.normal(size=scene.shape))
    texts = unit(scene[image] + spread * rng.normal(size=(len(image), WIDTH)))
    source = np.arange(len(image))
    moved = rng.choice(len(image), int(noise * len(image)), replace=False)
    source[moved] = np.roll(moved, 1)
    owner = image[source]
    return images, texts[torch.from_numpy(source)], image, owner, owner != image


def unit(rows):
    return F.normalize(torch.as_tensor(rows, dtype=torch.float32), dim=1)


def made_fits(**given):
    images, texts, image, owner, wrong = data(**given)
    return fits_of(images, texts, image, np.arange(len(image)), ~wrong), owner, wrong


def twin_fit(fits):
    """The formula of the module, in float64 and at once: [P, N]."""
    similar = (fits.images.double() @ fits.texts.double().T).numpy()
    text_hub = np.sort(similar, axis=0)[-10:].mean(axis=0)
    image_hub = np.sort(similar, axis=1)[:, -10:].mean(axis=1)
    own = np.zeros((len(fits.images), fits.texts.shape[1]))
    for pair in np.flatnonzero(fits.trusted):
        own[fits.image[pair]] += fits.texts[pair].numpy()
    own /= np.maximum(np.linalg.norm(own, axis=1, keepdims=True), 1e-12)
    siblings = own @ fits.texts.double().numpy().T
    return similar - image_hub[:, None] / 2 - text_hub / 2 + 2 * siblings


def test_captions_are_those_of_a_plain_sort():
    fits, _, wrong = made_fits()
    suspects = np.flatnonzero(wrong)
    answers = suggest_captions(fits, suspects, k=4)
    fit = twin_fit(fits)
    made = [p for p in range(SCENES) if fits.trusted[fits.image == p].all()]

    def out(photo):
        row = np.where(fits.image == photo, -np.inf, fit[photo])
        order = np.lexsort((np.arange(len(row)), -row))
        return order[:4], row[order[:4]], row[order] - row[order[:10]].mean()

    null = np.array([out(photo)[2][0] for photo in made])
    for place, pair in enumerate(suspects[:40]):
        index, values, stands_out = out(fits.image[pair])
        assert answers.index[place].tolist() == index.tolist()
        assert np.allclose(answers.fit[place], values, atol=1e-5)
        p = [(1 + (null >= each - 1e-6).sum()) / (1 + len(null)) for each in stands_out[:4]]
        assert np.allclose(answers.p[place], p, atol=2 / len(null))


def test_photos_are_those_of_a_plain_sort():
    fits, _, wrong = made_fits()
    suspects = np.flatnonzero(wrong)
    answers = suggest_photos(fits, suspects, k=4)
    fit = twin_fit(fits)
    for place, pair in enumerate(suspects[:40]):
        column = np.where(np.arange(SCENES) == fits.image[pair], -np.inf, fit[:, pair])
        order = np.lexsort((np.arange(SCENES), -column))[:4]
        assert answers.index[place].tolist() == order.tolist()
        assert np.allclose(answers.fit[place], column[order], atol=1e-5)


@pytest.mark.parametrize("bytes_", [4 * SCENES * EACH, 4 * SCENES * EACH * 7])
def test_blocks_change_nothing(monkeypatch, bytes_):
    fits, _, wrong = made_fits()
    suspects = np.flatnonzero(wrong)
    whole = suggest_captions(fits, suspects), suggest_photos(fits, suspects)
    monkeypatch.setattr(suggestions, "BLOCK_BYTES", bytes_)
    monkeypatch.setattr(neighbours, "BLOCK_BYTES", bytes_)
    parts = suggest_captions(fits, suspects), suggest_photos(fits, suspects)
    for one, other in zip(whole, parts, strict=True):
        assert np.array_equal(one.index, other.index)
        assert np.array_equal(one.fit, other.fit)
        assert np.array_equal(one.p, other.p)


def test_the_right_ones_are_found_and_nothing_is_proposed_where_they_are_missing():
    fits, owner, wrong = made_fits()
    suspects = np.flatnonzero(wrong)
    answers = suggest_captions(fits, suspects)
    missing = np.bincount(owner[wrong], minlength=SCENES)[fits.image[suspects]] > 0
    first_right = owner[answers.index[:, 0]] == fits.image[suspects]
    assert first_right[missing].mean() > 0.9
    assert answers.proposed[missing, 0].mean() > 0.6
    # no caption of a shuffled photo may be suggested any more: what is proposed is chance
    rest = ~np.isin(owner, fits.image[suspects])
    none = suggest_captions(fits, suspects, candidates=rest)
    assert not np.isin(none.index, np.flatnonzero(~rest)).any()
    assert none.proposed[:, 0].mean() < 0.12
    photos = suggest_photos(fits, suspects)
    assert (photos.index[:, 0] == owner[suspects]).mean() > 0.9
    assert photos.proposed[:, 0].mean() > 0.6
    rest = ~np.isin(np.arange(SCENES), owner[suspects])
    assert suggest_photos(fits, suspects, candidates=rest).proposed[:, 0].mean() < 0.12


def test_of_made_searches_one_in_twenty_proposes_something():
    """By construction, for photos that are like those of the null."""
    fits, _, _ = made_fits(noise=0, spread=1.5)
    answers = suggest_captions(fits, np.arange(0, len(fits.image), EACH))
    assert 0.02 <= answers.proposed[:, 0].mean() <= 0.05


def test_texts_that_stand_there_are_none_and_equal_texts_are_one():
    images, texts, image, _, wrong = data()
    text_id = np.arange(len(image))
    copies = np.flatnonzero(image == 7)
    other = np.flatnonzero(image == 8)
    text_id[other[0]] = text_id[copies[0]]  # under photo 8 stands, once more, a text of photo 7
    texts[other[0]] = texts[copies[0]]
    fits = fits_of(images, texts, image, text_id, ~wrong)
    all_pairs = np.arange(len(image))
    answers = suggest_captions(fits, all_pairs, k=20)
    for pair in all_pairs:
        found = answers.index[pair]
        assert not np.isin(text_id[found], text_id[image == image[pair]]).any()
        assert len(np.unique(text_id[found])) == 20
    photos = suggest_photos(fits, copies[:1], k=SCENES)
    assert not np.isin([7, 8], photos.index[0]).any()
    assert photos.index[0, -3:].tolist() == [photos.index[0, -3], -1, -1]
    assert photos.p[0, -1] == 1
    assert photos.fit[0, -1] == -np.inf


def test_what_stands_there_rightly():
    images, texts, image, _, _ = data()
    text_id, trusted = np.arange(len(image)), np.ones(len(image), dtype=bool)
    text_id[1] = text_id[0]
    trusted[4] = False
    fits = fits_of(images, texts, image, text_id, trusted)
    assert [pairs.tolist() for pairs in standing(fits, np.array([0, 3, 4]))] == [[2], [5], [3, 5]]


def test_equal_vectors_tie_in_the_order_of_the_data():
    images, texts, image, _, wrong = data()
    texts[100:140] = texts[100]
    fits = fits_of(images, texts, image, np.arange(len(image)), np.zeros(len(image), dtype=bool))
    answers = suggest_captions(fits, np.array([0]), k=len(image))
    places = np.flatnonzero((answers.index[0] >= 100) & (answers.index[0] < 140))
    assert answers.index[0][places].tolist() == list(range(100, 140))
    assert np.ptp(places) == 39
    assert wrong.any()


def test_another_similarity_and_other_embeddings():
    images, texts, image, _, wrong = data()

    def similarity(photos, captions):
        return torch.einsum("pxd,cyd->pc", photos, captions)

    apart = fits_of(images[:, None], texts[:, None], image, np.arange(len(image)), ~wrong, similarity, texts)
    plain = fits_of(images, texts, image, np.arange(len(image)), ~wrong)
    suspects = np.flatnonzero(wrong)
    assert np.array_equal(suggest_captions(apart, suspects).index, suggest_captions(plain, suspects).index)
    alone = fits_of(images[:, None], texts[:, None], image, np.arange(len(image)), ~wrong, similarity)
    assert alone.own is None
    assert suggest_captions(alone, suspects).index.shape == (len(suspects), 5)


def test_one_caption_a_photo():
    images, texts, image, _, _ = data(noise=0)
    first = np.arange(0, len(image), EACH)
    owner = np.arange(SCENES)
    owner[:60] = np.roll(owner[:60], 1)
    fits = fits_of(images, texts[first][owner], np.arange(SCENES), np.arange(SCENES), np.arange(SCENES) >= 60)
    answers = suggest_captions(fits, np.arange(60))
    assert (owner[answers.index[:, 0]] == np.arange(60)).mean() > 0.9
    assert all(not len(pairs) for pairs in standing(fits, np.arange(60)))


def test_two_pairs_and_none():
    vectors = torch.eye(2)
    fits = fits_of(vectors, vectors, np.arange(2), np.arange(2), np.array([True, False]))
    answers = suggest_captions(fits, np.array([1]), k=3)
    assert answers.index.tolist() == [[0, -1, -1]]
    assert not answers.proposed.any(), "from two pairs nobody knows"
    assert suggest_photos(fits, np.array([1]), k=1).index.tolist() == [[0]]
    assert suggest_captions(fits, np.empty(0, dtype=np.int64)).index.shape == (0, 5)
    nobody = suggest_captions(fits, np.array([1]), candidates=np.zeros(2, dtype=bool))
    assert nobody.index.tolist() == [[-1] * 5]
    assert not nobody.proposed.any()


def test_nearest_is_a_plain_sort_without_the_own_group():
    images, _, _, _, _ = data()
    group = np.arange(SCENES) // 4
    rows, cosine = nearest(images, np.array([0, 17, 299]), 6, group)
    full = (images.double() @ images.double().T).numpy()
    for place, query in enumerate((0, 17, 299)):
        row = np.where(group == group[query], -np.inf, full[query])
        assert rows[place].tolist() == np.argsort(-row, kind="stable")[:6].tolist()
        assert np.allclose(cosine[place], np.sort(row)[::-1][:6], atol=1e-6)
    some, _ = nearest(images, np.array([0]), 3, group, np.array([1, 5, 9]))
    assert set(some[0]) == {5, 9, -1}


@pytest.mark.parametrize("trusted", [np.ones(3), np.ones(2, dtype=bool)])
def test_shapes_that_do_not_fit(trusted):
    with pytest.raises(ValueError, match="expected bool and a number for each of 3 pairs"):
        fits_of(torch.eye(3), torch.eye(3), np.arange(3), np.arange(3), trusted)
