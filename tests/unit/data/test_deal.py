"""Batches in which neither an image nor a caption stands twice: what they must be, and how many there can be."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_itm.data.deal import deal, most_batches
from clip_itm.data.noise import CaptionNoise
from clip_itm.data.sampler import PairBatchSampler, count_batches
from clip_itm.runs.batch_checks import warn_of_crowded_captions
from clip_itm.runs.setup import make_sampler
from support.data_folders import make_pairs
from support.tiny import tiny_recipe


@st.composite
def pairs(draw) -> tuple[np.ndarray, np.ndarray]:
    """Images and captions of up to 40 pairs, few of one kind or many."""
    count = draw(st.integers(2, 40))
    sides = []
    for _ in range(2):
        kinds = draw(st.integers(1, count))
        values = draw(st.lists(st.integers(0, kinds - 1), min_size=count, max_size=count))
        sides.append(np.unique(values, return_inverse=True)[1])
    return tuple(sides)


def no_value_twice(values: np.ndarray) -> bool:
    ordered = np.sort(values, axis=1)
    return bool((ordered[:, 1:] > ordered[:, :-1]).all())


@given(pairs(), st.integers(1, 6), st.integers(0, 99))
def test_batches_are_full_and_hold_nothing_twice(sides, batch_size, seed):
    images, captions = sides
    batches = most_batches(images, captions, batch_size)
    if not batches:
        return
    drawn = deal(images, captions, batch_size, batches, np.random.default_rng(seed))
    assert drawn.shape == (batches, batch_size)
    assert len(np.unique(drawn)) == drawn.size, "no pair twice in an epoch"
    assert no_value_twice(images[drawn])
    assert no_value_twice(captions[drawn])
    again = deal(images, captions, batch_size, batches, np.random.default_rng(seed))
    assert np.array_equal(again, drawn)


@given(pairs(), st.integers(1, 6))
def test_no_number_of_batches_is_left_on_the_table(sides, batch_size):
    """One side alone allows no more; and where no value is too frequent, every whole batch is there."""
    images, captions = sides
    batches = most_batches(images, captions, batch_size)
    alone = [count_batches(side, batch_size, 1) for side in sides]
    assert batches in (0, min(alone))
    most = [np.bincount(side).max() for side in sides]
    if max(most) <= len(images) // batch_size:
        assert batches == len(images) // batch_size


@given(st.integers(1, 8), st.integers(1, 5), st.integers(0, 99))
def test_every_pair_once_where_every_caption_is_in_every_batch(captions, times, seed):
    """The tightest data: as many pairs of each caption as there are batches, two pairs of every image."""
    caption = np.tile(np.arange(captions), 2 * times)
    image = np.random.default_rng(seed).permutation(len(caption)) // 2
    if most_batches(image, caption, captions) == 0:
        return  # an image whose two captions no two batches take
    assert most_batches(image, caption, captions) == 2 * times
    drawn = deal(image, caption, captions, 2 * times, np.random.default_rng(seed))
    assert sorted(drawn.ravel().tolist()) == list(range(len(caption)))
    assert (np.sort(caption[drawn], axis=1) == np.arange(captions)).all()


def test_who_is_left_out_changes_from_epoch_to_epoch_and_the_number_does_not():
    caption = np.concatenate([np.zeros(12, dtype=np.int64), np.arange(1, 13)])  # of 24 photos, 12 show the same
    sampler = PairBatchSampler(np.arange(24), "unique", 4, pair_caption=caption)
    assert len(sampler) == 4
    seen = []
    for epoch in range(20):
        drawn = sampler.draw(epoch)
        assert drawn.shape == (4, 4)
        assert no_value_twice(caption[drawn])
        seen.append(frozenset(drawn[caption[drawn] == 0].tolist()))
        assert len(seen[-1]) == 4
    assert len(set(seen)) > 10
    assert set.union(*map(set, seen)) == set(range(12)), "each gets its turn"


def test_processes_share_batches_and_an_epoch_can_be_drawn_again():
    generator = np.random.default_rng(0)
    image, caption = np.arange(60) // 3, generator.integers(20, size=60)
    whole = PairBatchSampler(image, "unique", 8, seed=5, pair_caption=caption)
    shares = [
        PairBatchSampler(image, "unique", 8, seed=5, rank=rank, world_size=2, pair_caption=caption) for rank in (0, 1)
    ]
    for epoch in (0, 3):
        for sampler in (whole, *shares):
            sampler.set_epoch(epoch)
        expected = list(whole)
        assert [one + other for one, other in zip(*shares, strict=True)] == expected
        assert list(whole) == expected
        assert [sorted(set(caption[batch])) for batch in expected] == [sorted(caption[batch]) for batch in expected]
    some = np.flatnonzero(image < 12)
    part = whole.of(some, num_batches=7)
    drawn = part.draw(1)
    assert drawn.shape == (7, 8)
    assert set(drawn.ravel().tolist()) <= set(some.tolist())
    assert no_value_twice(caption[drawn])
    assert no_value_twice(image[drawn])


def test_positions_in_a_batch_are_random():
    """A process takes the first part of every batch: a frequent caption must not stand there always."""
    caption = np.concatenate([np.zeros(50, dtype=np.int64), np.arange(1, 151)])
    drawn = PairBatchSampler(np.arange(200), "unique", 4, pair_caption=caption).draw(0)
    rows, places = np.nonzero(caption[drawn] == 0)
    assert len(rows) == 50
    assert np.bincount(places, minlength=4).min() > 4


def test_more_captions_in_a_batch_than_there_are_is_refused():
    with pytest.raises(ValueError, match=r"training.batch_size 8 with training.unique_captions can take each of the 4"):
        PairBatchSampler(np.arange(40), "unique", 8, pair_caption=np.arange(40) % 4)
    with pytest.raises(ValueError, match=r"training.batches: unique can take each photo once, and the 5"):
        PairBatchSampler(np.arange(40) % 5, "unique", 8, pair_caption=np.arange(40))


def test_a_caption_on_more_photos_than_there_are_batches_is_told(tmp_path, recwarn):
    captions = ["Red mug"] * 6 + ["red mug."] * 6 + [f"cup {k}" for k in range(12)]
    pairs = make_pairs([1] * 24, captions)
    recipe = tiny_recipe(tmp_path, training={"batches": "unique", "unique_captions": True, "batch_size": 4})
    split, noise = SimpleNamespace(pairs=pairs), CaptionNoise.clean(pairs)
    sampler = make_sampler(recipe, split, noise)
    warn_of_crowded_captions(sampler, pairs, noise)
    (told,) = recwarn
    assert "an epoch has 4 batches, and 'Red mug' is the caption of 12 pairs, of which a batch takes one" in str(
        told.message
    )
    assert "8 pairs of 1 caption are left out of each epoch" in str(told.message)
    assert "with training.batch_size 2 or less" in str(told.message)
    recwarn.clear()
    smaller = recipe.with_overrides("--training.batch_size", "2")
    warn_of_crowded_captions(make_sampler(smaller, split, noise), pairs, noise)
    assert not len(recwarn)
    plain = recipe.with_overrides("--training.unique_captions", "false")
    assert make_sampler(plain, split, noise).pair_caption is None


def test_only_unique_batches_have_unique_captions(tmp_path):
    with pytest.raises(ValueError, match="unique_captions does nothing with batches: random"):
        tiny_recipe(tmp_path, training={"unique_captions": True})
    plain = tiny_recipe(tmp_path)
    assert tiny_recipe(tmp_path, training={"unique_captions": False}).sha256 == plain.sha256
    unique = {"batches": "unique"}
    hashes = {tiny_recipe(tmp_path, training={**unique, "unique_captions": value}).sha256 for value in (False, True)}
    assert len(hashes) == 2
