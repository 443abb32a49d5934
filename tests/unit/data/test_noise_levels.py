"""Noise that is harder than a shuffle: captions of images that look alike, and captions that share a noun."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_itm.data.configuration import NoiseSection
from clip_itm.data.load_noise import load_noise
from clip_itm.data.noise import CaptionNoise, Neighbours, level_in_words
from clip_itm.data.nouns import noun_forms, nouns_of
from support.data_folders import make_pairs

WORDS = ["dog", "dogs", "man", "bench", "benches", "runs", "red", "quickly"]


def draw_neighbours(count: int, k: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    others = [np.delete(np.arange(count), photo) for photo in range(count)]
    return np.array([np.sort(generator.permutation(own)[:k]) for own in others])


def slots_at_caption_level(pairs, ratio: float, seed: int) -> np.ndarray:
    """The pairs that level caption may move, all of them: the published first draw."""
    order = np.arange(len(pairs))
    np.random.RandomState(seed).shuffle(order)
    return np.sort(order[: int(ratio * len(pairs))])


@given(
    counts=st.lists(st.integers(1, 6), min_size=2, max_size=30),
    k=st.integers(1, 40),
    ratio=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_neighbour_level_takes_captions_of_neighbours_and_of_nobody_else(counts, k, ratio, seed):
    pairs = make_pairs(counts)
    near = Neighbours(draw_neighbours(len(counts), min(k, len(counts) - 1), seed % 1000), "a model")
    noise = CaptionNoise.draw(pairs, ratio, "neighbour", seed, near)
    wrong = np.flatnonzero(~noise.is_clean(pairs))
    np.testing.assert_array_equal(wrong, slots_at_caption_level(pairs, ratio, seed))
    for pair in wrong:
        assert pairs.image[noise.source[pair]] in near.images[pairs.image[pair]]
    right = np.setdiff1d(np.arange(len(pairs)), wrong)
    np.testing.assert_array_equal(noise.source[right], right)
    assert noise.statistics(pairs)["other_image"] == pytest.approx(int(ratio * len(pairs)) / len(pairs))
    assert CaptionNoise.draw(pairs, ratio, "neighbour", seed, near).sha256 == noise.sha256


def test_every_caption_of_the_neighbours_is_equally_likely():
    """Image 0 is near images 1 and 3, which have one and three captions."""
    pairs = make_pairs([8000, 1, 5, 3])
    near = Neighbours(np.array([[1, 3], [2, 3], [0, 1], [0, 2]]), "a model")
    noise = CaptionNoise.draw(pairs, 1.0, "neighbour", 3, near)
    drawn = np.bincount(noise.source[:8000], minlength=len(pairs))
    assert set(np.flatnonzero(drawn)) == {8000, 8006, 8007, 8008}
    np.testing.assert_allclose(drawn[drawn > 0] / 8000, 0.25, atol=0.02)


def test_draws_depend_on_seed_and_neighbours_alone():
    pairs = make_pairs([5] * 30)
    near, others = (Neighbours(draw_neighbours(30, 4, seed), "a model") for seed in (0, 1))
    state = np.random.get_state()[1].copy()
    draw = CaptionNoise.draw(pairs, 0.4, "neighbour", 5, near)
    assert draw.sha256 == CaptionNoise.draw(pairs, 0.4, "neighbour", 5, near).sha256
    assert draw.sha256 != CaptionNoise.draw(pairs, 0.4, "neighbour", 6, near).sha256
    assert draw.sha256 != CaptionNoise.draw(pairs, 0.4, "neighbour", 5, others).sha256
    CaptionNoise.draw(pairs, 0.4, "noun", 5)
    np.testing.assert_array_equal(np.random.get_state()[1], state)


@pytest.mark.parametrize(
    ("counts", "images", "message"),
    [
        ([5], np.empty((1, 0), np.int64), "the training split has 1"),
        ([2, 2], np.array([[1], [1]]), "must be other photos"),
        ([2, 2], np.array([[1], [2]]), "numbered 0 to 1"),
        ([2, 2], np.array([[1], [-1]]), "numbered 0 to 1"),
        ([2, 2], np.array([1, 0]), r"expected photo numbers \[2, k\]"),
        ([2, 2], np.array([[1.0], [0.0]]), r"expected photo numbers \[2, k\]"),
        ([2, 2, 0], np.array([[2], [0], [0]]), "nearest to photo 0 has a caption"),
    ],
)
def test_neighbours_that_cannot_be_are_refused(counts, images, message):
    with pytest.raises(ValueError, match=message):
        CaptionNoise.draw(make_pairs(counts), 0.5, "neighbour", 0, Neighbours(images, "a model"))


def test_without_neighbours_nothing_is_drawn_and_they_are_looked_for_only_where_they_count(tmp_path):
    pairs, asked = make_pairs([5] * 10), []

    def neighbours() -> Neighbours:
        asked.append(True)
        return Neighbours(draw_neighbours(10, 3, 0), "a model")

    for section in (NoiseSection(ratio=0.4), NoiseSection(level="neighbour"), NoiseSection(ratio=0.4, level="noun")):
        noise = load_noise(section, pairs, neighbours)
        assert noise.level == section.level
    assert not asked
    drawn = load_noise(NoiseSection(ratio=0.4, level="neighbour"), pairs, neighbours)
    assert asked
    assert drawn.details == {"neighbours": 3, "model": "a model"}
    drawn.save(tmp_path / "noise.npz")
    asked.clear()
    kept = load_noise(NoiseSection(file=str(tmp_path / "noise.npz"), level="neighbour"), pairs, neighbours)
    assert not asked
    assert kept.sha256 == drawn.sha256
    assert kept.description() == drawn.description()
    assert level_in_words(kept.description()) == "neighbour level, 3 nearest photos by a model"
    with pytest.raises(ValueError, match="nearest photos of each photo"):
        load_noise(NoiseSection(ratio=0.4, level="neighbour"), pairs)


@given(
    captions=st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(" ".join), min_size=4, max_size=40),
    ratio=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_noun_level_takes_captions_that_share_a_noun_where_there_are_any(captions, ratio, seed):
    pairs = make_pairs([2] * (len(captions) // 2), captions[: len(captions) // 2 * 2])
    noise = CaptionNoise.draw(pairs, ratio, "noun", seed)
    nouns = [set(nouns_of(caption)) for caption in pairs.captions.to_pylist()]
    slots = slots_at_caption_level(pairs, ratio, seed)
    lonely = []
    for pair in slots:
        others = [k for k in range(len(pairs)) if pairs.image[k] != pairs.image[pair] and nouns[k] & nouns[pair]]
        if others:
            assert noise.source[pair] in others
        else:
            lonely.append(pair)
    assert sorted(noise.source[lonely]) == lonely
    assert noise.details == {"without_noun": len(lonely)}
    rest = np.setdiff1d(np.arange(len(pairs)), slots)
    np.testing.assert_array_equal(noise.source[rest], rest)
    assert CaptionNoise.draw(pairs, ratio, "noun", seed).sha256 == noise.sha256


def test_a_noun_is_drawn_first_and_then_a_caption_that_has_it():
    """Half of the draws go to the one other bench, although dogs are many."""
    captions = ["a dog on a bench"] * 4000 + ["a bench"] + ["dogs"] * 9
    noise = CaptionNoise.draw(make_pairs([4000, 1, 9], captions), 1.0, "noun", 0)
    drawn = np.bincount(noise.source[:4000], minlength=4010)
    assert drawn[4000] / 4000 == pytest.approx(0.5, abs=0.03)
    np.testing.assert_allclose(drawn[4001:] / 4000, 0.5 / 9, atol=0.02)


@pytest.mark.parametrize(
    ("caption", "nouns"),
    [
        ("Two dogs, a DOG and a man's bench", ["dog", "man", "bench"]),
        ("women, children and policemen", ["woman", "child", "policeman"]),
        ("buses, puppies, knives, potatoes, photos, boys", ["bus", "puppy", "knife", "potato", "photo", "boy"]),
        ("people", ["person"]),
        ("running quickly through the red", []),
        ("", []),
        ("ein Hund läuft", []),
    ],
)
def test_nouns_are_found_in_singular_and_plural(caption, nouns):
    assert nouns_of(caption) == nouns


def test_the_word_list_has_no_form_of_two_nouns_but_pairs_of_things():
    """`trunks` and `woods` are no plurals of `trunk` and `wood`."""
    nouns = set(noun_forms().values())
    assert len(nouns) > 500
    assert {noun for noun in nouns if f"{noun}s" in nouns} == {"trunk", "wood"}


def test_facts_of_a_level_are_kept_and_files_of_earlier_versions_load(tmp_path):
    pairs, path = make_pairs([2] * 4, ["dog", "red"] * 4), tmp_path / "noise.npz"
    noise = CaptionNoise.draw(pairs, 1.0, "noun", 7)
    noise.save(path)
    assert CaptionNoise.load(path).details == noise.details == {"without_noun": 4}
    with np.load(path) as arrays:
        stored = {name: arrays[name] for name in arrays.files if name != "details"}
    np.savez(path, **stored)
    again = CaptionNoise.load(path)
    assert again.details == {}
    assert again.sha256 == noise.sha256
