"""Which captions are equal, and the numbers by which losses know it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_itm.data.equal_captions import caption_numbers, number_captions, plain_text
from clip_itm.data.noise import CaptionNoise
from support.data_folders import make_pairs


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("red mug", "Red MUG"),
        ("red mug", "  red\t\n mug "),
        ("red mug", "red mug."),
        ("red mug", "red mug ?!…"),
        ("red\u00a0mug", "red mug"),  # a no-break space is white space
        ("caf\u00e9", "cafe\u0301"),
        ("CAFE\u0301", "caf\u00e9"),
        ("Straße", "STRASSE"),
        ("红色杯子。", "红色杯子"),
    ],
)
def test_captions_that_are_equal(one, other):
    assert plain_text(one) == plain_text(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("red mug", "mug red"),
        ("red mug", "red mugs"),
        ("red mug", "redmug"),
        ("red mug", "red, mug"),
        ("mug (red)", "mug red"),
        ("5 cups", "5. cups"),
        ("cafe", "caf\u00e9"),
        ("?", "!"),
    ],
)
def test_captions_that_are_not(one, other):
    assert plain_text(one) != plain_text(other)


@given(st.lists(st.text(alphabet="aA.e\u0301 \u00e9ß\t!", max_size=5), max_size=8))
def test_numbers_say_who_is_equal(captions):
    numbers = number_captions(captions)
    assert numbers.dtype == np.int64
    for i, one in enumerate(captions):
        for j, other in enumerate(captions):
            assert (numbers[i] == numbers[j]) == (plain_text(one) == plain_text(other))
    assert sorted(set(numbers.tolist())) == list(range(len(set(numbers.tolist()))))
    assert all(plain_text(plain_text(caption)) == plain_text(caption) for caption in captions)


def test_pairs_have_the_caption_that_they_are_trained_on():
    pairs = make_pairs([2, 1, 1], ["red mug", "a cup", "Red mug.", "green pot"])
    clean = CaptionNoise.clean(pairs)
    assert caption_numbers(pairs, clean).tolist() == [0, 1, 0, 2]
    noise = CaptionNoise(np.array([0, 3, 1, 2]), 0.75, "caption", 0, pairs.captions_sha256)
    assert caption_numbers(pairs, noise).tolist() == [0, 2, 1, 0]
