"""Groups of an audit: what is found, in order, and in words; nothing where there is nothing."""

import numpy as np

from clip_itm.auditing.groups import FIRST, WORDS, groups_of


def found(groups):
    return {group.title: group.pairs.tolist() for group in groups}


def test_nothing_found_is_an_empty_list():
    assert groups_of(["a dog", "a cat", "two men in a boat"], np.array([0, 0, 1])) == []
    assert groups_of([], np.empty(0, dtype=np.int64)) == []
    assert groups_of(["a dog"], np.array([0]), [], ["train", "val"]) == []


def test_leaks_come_first_then_captions_then_copies():
    captions = ["a dog", "IMG_2031", "a cat", "untitled", "a man", "a boat"]
    image = np.array([0, 0, 1, 2, 3, 4])
    copies = [np.array([0, 5]), np.array([1, 3, 6]), np.array([7, 8])]
    split = ["train"] * 5 + ["val", "test", "val", "test"]
    groups = groups_of(captions, image, copies, split)
    assert found(groups) == {
        "Photos of test and val, too": [0, 1, 2, 4],
        "File names": [1],
        "Placeholders": [3],
        "Copies of photos": [2, 4],
    }
    assert [group.kind for group in groups] == ["leak", "file name", "placeholder", "copies"]
    leak, *_, twice = groups
    assert "3 photos are copies of photos in test and val" in leak.sentence
    assert [part.tolist() for part in leak.parts] == [[0, 5], [1, 3, 6]]
    assert [part.tolist() for part in twice.parts] == [[1, 3]]
    assert "2 photos are 1" in twice.sentence


def test_copies_of_one_split():
    groups = groups_of(["a dog", "a cat", "a man"], np.array([0, 1, 2]), [np.array([0, 2])])
    assert found(groups) == {"Copies of photos": [0, 2]}


def test_captions_that_are_alike_only_where_they_are_asked_for():
    captions = ["a dog on grass", "the dog on the grass", "a boat"]
    assert groups_of(captions, np.arange(3)) == []
    (group,) = groups_of(captions, np.arange(3), caption_groups=[np.array([0, 1])])
    assert group.kind == "alike"
    assert len(group) == 2
    assert "2 captions" in group.sentence


def test_what_is_the_same_is_named_and_braces_are_text():
    captions = [*["Buy {now} for {0}!"] * 12, *[f"a boat number {n}" for n in range(5)]]
    (group,) = groups_of(captions, np.arange(len(captions)))
    assert group.title == 'The same text: "Buy {now} for {0}!"'
    assert "12 photos" in group.sentence
    assert group.pairs.tolist() == [*range(12)]


def test_every_rule_has_words():
    assert WORDS.keys() == set(FIRST)
    captions = [
        "IMG_1234",
        "www.a.com",
        "click here",
        "caption",
        "7",
        *["best price"] * 12,
        *[f"{thing} sold by acme studios" for thing in "abcdefghijklm"],
        *["the dog is in the snow"] * 3,
        "der hund ist im schnee",
    ]
    groups = groups_of(captions, np.arange(len(captions)))
    assert [group.kind for group in groups] == list(FIRST)
    assert all(group.title and group.sentence and group.advice and len(group) for group in groups)
    assert not any("{" in text for group in groups for text in (group.title, group.sentence, group.advice))
    assert groups[6].title == "The same end: ... sold by acme studios"
