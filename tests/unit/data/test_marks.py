"""Marks are on the disk before they count, and what was cut off by a kill was never one."""

import json
import multiprocessing

import pytest

from clip_itm.data.marks import Mark, append_marks, marks_of_pairs, pair_hash, read_marks


def test_marks_come_back_in_their_order(tmp_path):
    path = tmp_path / "marks.jsonl"
    first = Mark("a", "fixed", "7.jpg", 'IMG "2031"\n', "a réd mug", "ana", "2026-11-30T18:55:00+00:00", sampled=True)
    append_marks(path, [first])
    append_marks(path, [Mark("b", "right"), Mark("a", "undone", author="ana")])
    assert read_marks(path) == [first, Mark("b", "right"), Mark("a", "undone", author="ana")]
    assert set(marks_of_pairs(read_marks(path))) == {"b"}


def test_a_line_that_was_cut_off_is_no_mark_and_spoils_none(tmp_path):
    path = tmp_path / "marks.jsonl"
    second = Mark("b", "fixed", text="ein {Häuschen}")
    append_marks(path, [Mark("a", "wrong"), second])
    whole = path.read_bytes()
    for end in range(whole.index(b"\n") + 1, len(whole) - 1):
        path.write_bytes(whole[:end])
        append_marks(path, [Mark("c", "right")])
        found = read_marks(path)
        assert (found[0], found[-1]) == (Mark("a", "wrong"), Mark("c", "right"))
        assert found[1:-1] == ([second] if end == len(whole) - 1 else [])


def test_the_last_mark_counts_and_undo_takes_back_ones_own():
    ana, ben = Mark("a", "wrong", author="ana"), Mark("a", "right", author="ben")
    assert marks_of_pairs([ana, ben]) == {"a": ben}
    assert marks_of_pairs([ana, ben, Mark("a", "undone", author="ben")]) == {"a": ana}
    assert marks_of_pairs([ana, ben, Mark("a", "undone", author="ana")]) == {"a": ben}
    assert marks_of_pairs([ana, Mark("a", "undone", author="cleo"), Mark("b", "undone")]) == {"a": ana}


def test_a_second_look_takes_no_pair_out_of_the_sample():
    drawn, looked = Mark("a", "wrong", author="ana", sampled=True, weight=7), Mark("a", "right", author="ana")
    assert marks_of_pairs([drawn, looked]) == {"a": Mark("a", "right", author="ana", sampled=True, weight=7)}
    assert marks_of_pairs([looked, drawn, looked, Mark("a", "undone", author="ana")])["a"] == drawn
    undone = [drawn, Mark("a", "undone", author="ana"), looked]
    assert marks_of_pairs(undone) == {"a": looked}


def _append(path, author):
    for number in range(50):
        append_marks(path, [Mark(f"{author}{number}", "wrong", caption="x" * 500, author=author)])


def test_two_programs_append_to_one_file(tmp_path):
    path = tmp_path / "marks.jsonl"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_append, args=(path, author)) for author in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert {mark.pair for mark in read_marks(path)} == {f"{author}{number}" for author in "ab" for number in range(50)}


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ({"mark": "right"}, "line 2: it has no 'pair'"),
        ({"pair": "a", "mark": "good"}, "line 2: mark is 'good'; expected right, wrong, fixed, skipped, undone"),
        ({"pair": "a", "mark": "fixed"}, "line 2: it is fixed, and has no text"),
        ({"pair": 3, "mark": "right"}, "line 2: pair is 3; expected a text"),
        ({"pair": "a", "mark": "right", "sampled": 1}, "line 2: sampled is 1; expected true or false"),
        ({"pair": "a", "mark": "right", "weight": True}, "line 2: weight is True; expected a number above 0"),
        ({"pair": "a", "mark": "right", "weight": 0}, "line 2: weight is 0; expected a number above 0"),
    ],
)
def test_what_is_no_mark_is_named(tmp_path, line, complaint):
    path = tmp_path / "marks.jsonl"
    append_marks(path, [Mark("a", "wrong")])
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
    with pytest.raises(ValueError, match="marks.jsonl, " + complaint):
        read_marks(path)


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "marks.jsonl"
    path.write_text("pair,mark\na,right\n")
    with pytest.raises(ValueError, match=r"marks.jsonl, line 1: expected a mark in JSON, got 'pair,mark'"):
        read_marks(path)


def test_the_hash_knows_the_photo_and_the_caption():
    assert pair_hash("7.jpg", " a mug ") == pair_hash("7.jpg", "a mug")
    assert len({pair_hash("7", "1 a"), pair_hash("7 1", "a"), pair_hash("7", "a"), pair_hash("71", " a")}) == 4
