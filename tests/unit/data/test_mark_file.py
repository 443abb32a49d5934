"""Marks in a file that others write to, too: what is new is seen, what was sent twice is there once."""

import threading
from pathlib import Path

import pytest

from clip_itm.data.mark_file import MarkFile
from clip_itm.data.marks import Mark, append_marks, read_marks


def mark(pair: str, time: str = "2026-11-30T18:55:00.001+00:00", **more) -> Mark:
    return Mark(pair, **{"mark": "wrong", **more}, author="ana", time=time)


@pytest.fixture
def file(tmp_path) -> MarkFile:
    return MarkFile(tmp_path / "marks.jsonl")


def test_there_need_not_be_a_file(file):
    assert file.look() == []
    assert not file.path.exists()
    assert file.add([]) == 0
    assert not file.path.exists()
    assert file.add([mark("a")]) == 1
    assert read_marks(file.path) == [mark("a")]


def test_what_is_sent_again_is_not_doubled(file):
    later = mark("a", "2026-11-30T18:55:00.002+00:00")
    assert file.add([mark("a"), mark("b"), mark("a")]) == 2
    assert file.add([mark("a"), mark("a", mark="right"), later]) == 2
    assert MarkFile(file.path).add([mark("b"), later]) == 0  # after a restart
    assert read_marks(file.path) == [mark("a"), mark("b"), mark("a", mark="right"), later]


def test_what_others_write_is_seen(file):
    file.add([mark("a")])
    append_marks(file.path, [mark("b")])
    assert file.look() == [mark("a"), mark("b")]
    assert file.add([mark("b"), mark("c")]) == 1
    assert file.look() == read_marks(file.path) == [mark("a"), mark("b"), mark("c")]


def test_a_file_that_was_cut_off_anywhere_reads_as_one_that_is_read_whole(tmp_path):
    whole = MarkFile(tmp_path / "whole.jsonl")
    whole.add([mark("a"), mark("b", mark="fixed", text="ein {Häuschen}")])
    data = whole.path.read_bytes()
    for end in range(len(data) + 1):
        file = MarkFile(tmp_path / f"{end}.jsonl")
        file.path.write_bytes(data[:end])
        assert file.look() == read_marks(file.path)
        assert file.look() == read_marks(file.path)
        file.add([mark("a"), mark("c")])
        assert file.look() == read_marks(file.path) == MarkFile(file.path).look()
        pairs = [found.pair for found in file.look()]
        assert sorted(set(pairs)) == sorted(pairs)
        assert {"a", "c"} <= set(pairs)


def test_a_file_that_was_replaced_is_read_anew(file):
    file.add([mark("a"), mark("b")])
    file.look()
    other = file.path.with_name("other.jsonl")
    append_marks(other, [mark("c"), mark("d")])
    other.replace(file.path)
    assert file.look() == [mark("c"), mark("d")]
    file.path.unlink()
    assert file.look() == []
    file.add([mark("a")])
    assert file.look() == [mark("a")]


def test_what_is_no_mark_is_named_again_and_again(file):
    file.add([mark("a")])
    file.path.open("a").write('{"pair": "b", "mark": "no"}\n')
    for _ in range(2):
        with pytest.raises(ValueError, match=r"marks\.jsonl, line 2: mark is 'no'"):
            file.look()
    with pytest.raises(ValueError, match="line 2"):
        file.add([mark("c")])
    file.path.write_text("".join(file.path.read_text().splitlines(keepends=True)[:1]))
    assert file.add([mark("c")]) == 1
    assert [found.pair for found in file.look()] == ["a", "c"]


def test_several_threads_write_each_mark_once(file):
    marks = [mark(str(k)) for k in range(40)]

    def send():
        for one in marks:
            file.add([one])

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(read_marks(file.path), key=lambda one: int(one.pair)) == marks


def test_a_disk_that_is_full_is_told_and_the_mark_can_be_sent_again(file, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("clip_itm.data.mark_file.append_marks", full)
        with pytest.raises(OSError, match="No space"):
            file.add([mark("a")])
    assert file.look() == []
    assert file.add([mark("a")]) == 1


def test_a_folder_in_its_place_is_named(tmp_path):
    with pytest.raises(ValueError, match=str(Path(tmp_path.name))):
        MarkFile(tmp_path).look()
