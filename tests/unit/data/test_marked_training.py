"""Marks as labels of training pairs: weights, labels and texts, all of them in the hash of the split."""

import numpy as np
import pytest

from clip_itm.data.cleaned import write_cleaned
from clip_itm.data.configuration import FolderData, SampleData
from clip_itm.data.load import load_splits
from clip_itm.data.marked_pairs import MarkedPairs
from clip_itm.data.marked_training import with_marks
from clip_itm.data.marks import Mark, append_marks, pair_hash
from clip_itm.data.noise import CaptionNoise, Neighbours


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    data = SampleData(train_images=8, val_images=2, test_images=2, cache_dir=str(tmp_path_factory.mktemp("cache")))
    return load_splits(data)


def mark(splits, noise, pair: int, kind: str, **more) -> Mark:
    """What is said of a pair with the caption that it got."""
    pairs = splits["train"].pairs
    image_id = pairs.image_ids[int(pairs.image[pair])].as_py()
    return Mark(pair_hash(image_id, noise.apply(pairs)[pair].as_py()), kind, **more)


def marked(tmp_path, splits, noise, *marks: Mark):
    append_marks(tmp_path / "marks.jsonl", marks)
    return with_marks(splits, noise, tmp_path / "marks.jsonl")


@pytest.fixture(params=[0.0, 0.5])
def noise(request, splits):
    return CaptionNoise.draw(splits["train"].pairs, request.param, "caption", 3)


def test_a_recipe_without_marks_has_what_it_had(tmp_path, splits, noise):
    assert with_marks(splits, noise, None) == (splits, noise)
    (tmp_path / "marks.jsonl").write_text("")
    for file_is in ("empty", "skipped"):
        if file_is == "skipped":
            append_marks(tmp_path / "marks.jsonl", [mark(splits, noise, 3, "skipped")])
        found, same = with_marks(splits, noise, tmp_path / "marks.jsonl")
        assert (found["train"].sha256, same.sha256) == (splits["train"].sha256, noise.sha256)


def test_weights_labels_and_texts_are_those_of_the_pairs_as_they_were_shown(tmp_path, splits, noise):
    found, same = marked(
        tmp_path,
        splits,
        noise,
        mark(splits, noise, 2, "wrong"),
        mark(splits, noise, 7, "right"),
        mark(splits, noise, 11, "fixed", text=" ein Häuschen\n"),
    )
    pairs, before = found["train"].pairs, splits["train"].pairs
    label = np.full(40, np.nan)
    label[[2, 7, 11]] = 0, 1, 1
    np.testing.assert_array_equal(pairs.label, label)
    np.testing.assert_array_equal(pairs.weight, np.where(np.arange(40) == 2, 0, 1))
    got, had = same.apply(pairs).to_pylist(), noise.apply(before).to_pylist()
    assert got == [*had[:11], "ein Häuschen", *had[12:]]
    assert pairs.caption_ids.equals(before.caption_ids)
    np.testing.assert_array_equal(same.is_clean(pairs), noise.is_clean(before))
    np.testing.assert_array_equal(pairs.heeded(np.full(40, 0.5))[[1, 2, 7, 11]], [0.5, 0, 1, 1])
    assert found["val"] is splits["val"]
    assert found["train"].rows["image"] == splits["train"].rows["image"]
    assert found["train"].marks["train_sha256"] == splits["train"].sha256
    one = found["train"].select([2])
    np.testing.assert_array_equal(one.pairs.label, label[10:15])


def test_what_a_run_saved_finds_the_same_pairs_again(tmp_path, splits, noise):
    said = [mark(splits, noise, 2, "fixed", text="a house")]
    found, same = marked(tmp_path, splits, noise, *said)
    again, saved = with_marks(splits, same, tmp_path / "marks.jsonl")
    assert (again["train"].sha256, saved.sha256) == (found["train"].sha256, same.sha256)


@pytest.mark.parametrize("more", [("right", 5), ("wrong", 5), ("fixed", 5), ("wrong", 2)])
def test_other_marks_are_other_data(tmp_path, splits, more):
    noise = CaptionNoise.clean(splits["train"].pairs)
    first, _ = marked(tmp_path, splits, noise, mark(splits, noise, 2, "right"))
    kind, pair = more
    text = {"text": "a house"} if kind == "fixed" else {}
    other, _ = marked(tmp_path, splits, noise, mark(splits, noise, pair, kind, **text))
    assert len({splits["train"].sha256, first["train"].sha256, other["train"].sha256}) == 3
    same, _ = marked(tmp_path, splits, noise, mark(splits, noise, 9, "skipped"))
    assert same["train"].sha256 == other["train"].sha256


def test_right_marks_alone_bring_no_weights(tmp_path, splits, noise):
    found, _ = marked(tmp_path, splits, noise, mark(splits, noise, 2, "right"))
    assert found["train"].pairs.weight is None


def test_marks_of_other_data_are_refused(tmp_path, splits, noise):
    with pytest.raises(ValueError, match=r"data.marks: none of the 2 pairs in .*marks.jsonl is a pair of these"):
        marked(tmp_path, splits, noise, Mark("a", "wrong"), Mark("b", "right"))
    found, _ = marked(tmp_path, splits, noise, mark(splits, noise, 2, "right"))
    assert found["train"].marks["unmatched"] == 2
    with pytest.raises(ValueError, match=r"nothing.jsonl"):
        with_marks(splits, noise, tmp_path / "nothing.jsonl")


def test_one_caption_of_several_pairs_cannot_be_fixed(tmp_path, splits):
    near = Neighbours(np.array([[(k + 1) % 8] for k in range(8)]), "by hand")
    noise = CaptionNoise.draw(splits["train"].pairs, 1.0, "neighbour", 0, near)
    shared = int(np.flatnonzero(np.bincount(noise.source, minlength=40)[noise.source] > 1)[0])
    with pytest.raises(ValueError, match=r"noise.level neighbour gave to .* --by-marks --clean-to"):
        marked(tmp_path, splits, noise, mark(splits, noise, shared, "fixed", text="a house"))
    # what the message advises: there every pair has a text of its own
    write_cleaned(tmp_path / "new", splits, noise, np.ones(40, dtype=bool), None, {}, fixed={shared: "a house"})
    written = load_splits(FolderData(root=str(tmp_path / "new"), cache_dir=str(tmp_path / "cache")))["train"].pairs
    had = noise.apply(splits["train"].pairs).to_pylist()
    assert written.captions.to_pylist() == [*had[:shared], "a house", *had[shared + 1 :]]


def test_marks_of_no_pair_are_counted(splits):
    noise = CaptionNoise.clean(splits["train"].pairs)
    marks = [mark(splits, noise, 3, "wrong", author="ana"), Mark("x", "right"), mark(splits, noise, 1, "skipped")]
    found = MarkedPairs.of(splits["train"].pairs, noise, marks)
    assert found.pair.tolist() == [1, 3]
    assert (found.unmatched, found.counts) == (1, {"skipped": 1, "wrong": 1})
    assert found.authors == {"unknown": 1, "ana": 1}
    assert MarkedPairs.of(splits["train"].pairs, noise, []).marks == ()
