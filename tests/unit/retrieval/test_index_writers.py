"""Several writers of an index, killed ones, a full disk, and folders of somebody else: the index stays whole."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_itm.lock import locked
from clip_itm.retrieval import storage
from clip_itm.retrieval.index import LocalIndex
from clip_itm.retrieval.items import Item
from clip_itm.retrieval.storage import index_damages
from support.forks import Forked
from support.tiny_index import QUERIES, VECTORS, items, make_index, names, same, snapshot


def own_files(folder: Path) -> set[str]:
    """What an index may leave in its folder."""
    content = json.loads((folder / "index.json").read_text())
    return {"index.json"} | {file["name"] for file in storage.named_files(content)}


# Folders of somebody else

FOREIGN = {
    "notes": {"notes.txt": "mine"},
    "files of the names of an index": {"vectors-0000.safetensors": "mine", "items-0000.parquet": "mine"},
    "an index.json of something else": {"index.json": "{}", "vectors-0000.safetensors": "mine"},
    "an index.json that is no JSON": {"index.json": "mine"},
    "a hidden file": {".gitignore": "*"},
    "a list that is not ours": {".clip_itm.pending": '{"files": ["notes-0.txt"]}', "notes-0.txt": "mine"},
}


@pytest.mark.parametrize("place", ["-", "file", "file/below"])
def test_a_place_where_no_folder_can_be_is_refused_before_anything_is_loaded(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match="choose a"):
        storage.require_index_folder(Path(place))
    assert names(tmp_path) == {"file"}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_folder_of_somebody_else_is_refused_and_left_alone(tmp_path, what):
    for name, text in FOREIGN[what].items():
        (tmp_path / name).write_text(text)
    before = snapshot(tmp_path)
    index = make_index()
    with pytest.raises(ValueError, match=str(tmp_path)) as raised:
        index.save(tmp_path)
    assert snapshot(tmp_path) == before
    assert any(name in str(raised.value) for name in FOREIGN[what])


def test_files_of_somebody_else_in_the_folder_of_an_index_stay(tmp_path):
    index = make_index(tmp_path)
    mine = {"README.md", "vectors-0000.safetensors", "items-00112233445566aa.parquet", "deleted-0001.npz"}
    for name in mine:
        (tmp_path / name).write_text("mine")
    for k in range(20, 23):
        index.add(items(k), VECTORS[k : k + 1])
        index.delete([f"i{k - 10}"])
        index.save(tmp_path)
    index.compact()
    assert names(tmp_path) == own_files(tmp_path) | mine
    assert all((tmp_path / name).read_text() == "mine" for name in mine)
    assert same(LocalIndex.load(tmp_path, verify=True), index)


def test_a_list_of_files_removes_nothing_else(tmp_path):
    index = make_index(tmp_path)
    (tmp_path / "photo.jpg").write_text("mine")
    (tmp_path.parent / "outside.txt").write_text("mine")
    named = ["photo.jpg", "../outside.txt", *own_files(tmp_path), "hnsw-0000000000000000.faiss"]
    (tmp_path / "hnsw-0000000000000000.faiss").write_text("of a killed writer")
    (tmp_path / storage.PENDING).write_text(json.dumps({"format": storage.FORMAT, "files": named}))
    index.save(tmp_path)
    assert names(tmp_path) == own_files(tmp_path) | {"photo.jpg"}
    assert (tmp_path.parent / "outside.txt").exists()


# Two writers


def test_the_second_of_two_commits_is_refused_and_leaves_nothing(tmp_path):
    make_index(tmp_path)
    first, second = LocalIndex.load(tmp_path), LocalIndex.load(tmp_path)
    first.add(items(30), VECTORS[30:31])
    second.add(items(31), VECTORS[31:32])
    first.save(tmp_path)
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match="changed by another process since this index was loaded; load it again"):
        second.save(tmp_path)
    assert snapshot(tmp_path) == before
    assert same(LocalIndex.load(tmp_path, verify=True), first)


def test_a_commit_without_a_lock_is_noticed(tmp_path, monkeypatch):
    """On a system without locks the other one may commit while this one writes its files."""
    make_index(tmp_path)
    first, second = LocalIndex.load(tmp_path), LocalIndex.load(tmp_path)
    first.add(items(30), VECTORS[30:31])
    second.add(items(31), VECTORS[31:32])
    write_segment = storage.write_segment

    def interrupted(*args):
        monkeypatch.undo()
        first.write(tmp_path)
        return write_segment(*args)

    monkeypatch.setattr(storage, "write_segment", interrupted)
    with pytest.raises(ValueError, match="changed by another process"):
        second.write(tmp_path)
    assert names(tmp_path) == own_files(tmp_path)
    assert same(LocalIndex.load(tmp_path, verify=True), first)


@pytest.mark.parametrize("saved", [True, False], ids=["an index", "a new folder"])
def test_threads_that_save_at_once(tmp_path, saved):
    if saved:
        make_index(tmp_path / "index")
    start, told = threading.Barrier(4), {}

    def work(number: int) -> None:
        index = LocalIndex.load(tmp_path / "index") if saved else make_index()
        index.add(items(30 + number), VECTORS[30 + number : 31 + number])
        start.wait()
        try:
            index.save(tmp_path / "index")
        except ValueError as error:
            told[number] = str(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (won,) = set(range(4)) - told.keys()
    expected = make_index()
    expected.add(items(30 + won), VECTORS[30 + won : 31 + won])
    assert same(LocalIndex.load(tmp_path / "index", verify=True), expected)
    assert names(tmp_path / "index") == own_files(tmp_path / "index")
    assert all("is being written by" in text or "load" in text for text in told.values())


def test_a_folder_that_is_being_written_names_the_owner(tmp_path):
    index = make_index(tmp_path)
    index.add(items(30), VECTORS[30:31])
    code = f"from clip_itm.lock import locked\nwith locked({str(tmp_path)!r}, 'index'): print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        owner.stdout.readline()
        with pytest.raises(ValueError, match=f"is being written by process {owner.pid} on .*clip-itm index"):
            index.save(tmp_path)
        assert len(LocalIndex.load(tmp_path, verify=True)) == 20, "it can be read all the while"
        owner.communicate(b"\n")
    index.save(tmp_path)


def test_who_reads_is_not_disturbed_by_who_writes(tmp_path):
    pytest.importorskip("faiss")
    writer = make_index(tmp_path, kind="hnsw", count=40)
    reader = LocalIndex.load(tmp_path)
    expected = make_index(count=40).search(QUERIES, 1)
    writer.delete([f"i{k}" for k in range(20)])
    writer.save(tmp_path)  # compacts: every file of the reader's is gone
    assert reader.search(QUERIES, 1) == expected
    assert len(list(reader.items())) == 40


def test_an_index_that_changes_while_it_is_loaded(tmp_path, monkeypatch):
    writer = make_index(tmp_path)
    read_segment, calls = storage.read_segment, []

    def interrupted(*args):
        if not calls:
            calls.append(1)
            writer.delete(["i1"])
            with monkeypatch.context() as patch:
                patch.setattr(storage, "read_segment", read_segment)
                writer.compact()
        return read_segment(*args)

    monkeypatch.setattr(storage, "read_segment", interrupted)
    assert len(LocalIndex.load(tmp_path)) == 19


# Writers that are killed or have no room

WRITER = """
import sys, torch
from clip_itm.retrieval.index import LocalIndex
from clip_itm.retrieval.items import Item
folder, rounds = sys.argv[1], int(sys.argv[2])
index = LocalIndex.load(folder)
print('loaded')
for k in range(rounds):
    numbers = range(1000 * k, 1000 * k + 300)
    index.add([Item(f"n{n}", thumbnail=b"jpeg" * 50) for n in numbers], torch.full((300, 8), float(k)))
    if k:
        index.delete([f"n{n}" for n in range(1000 * k - 1000, 1000 * k - 700)])
    index.save(folder)
"""


def take_out_added(folder: Path) -> LocalIndex:
    index = LocalIndex.load(folder)
    index.delete([id for id in index.ids() if id.startswith("n")])
    index.save(folder)
    return index


def killed_writes(folder: Path, moments: int, seed: int) -> int:
    """Kill a process that saves again and again, at random moments; returns how often it had committed by then."""
    make_index(folder)
    draw, committed = random.Random(seed), 0
    for _ in range(moments):
        take_out_added(folder)
        writer = Forked("-c", WRITER, str(folder), "1000")
        writer.wait_for("loaded")
        time.sleep(draw.random() * 0.25)
        writer.kill()
        assert index_damages(folder) == []
        found = LocalIndex.load(folder, verify=True)
        added = [id for id in found.ids() if id.startswith("n")]
        assert len(added) in (0, 300), "one commit or the other"
        assert len(found) == 20 + len(added) == len(found.search(QUERIES, 400)[0])
        committed += bool(added)
    index = take_out_added(folder)
    index.add(items(30), VECTORS[30:31])
    index.save(folder)
    assert names(folder) == own_files(folder), "the next writer clears what the killed ones left"
    return committed


def test_writers_killed_at_any_moment_leave_one_index_or_the_other(tmp_path):
    killed_writes(tmp_path, int(os.environ.get("CLIP_ITM_KILLS", "3")), seed=0)


@pytest.mark.parametrize("limit", [0, 50, 200, 1000, 3000, 20_000])
@pytest.mark.parametrize("kind", ["exact", "hnsw", "ivf-pq"])
def test_a_full_disk_leaves_the_old_index(tmp_path, kind, limit, monkeypatch):
    """Every file is cut off at a number of bytes, as by a quota."""
    if kind != "exact":
        pytest.importorskip("faiss")
    monkeypatch.setattr("clip_itm.retrieval.approximate.FEWEST_FOR_IVF", 500)
    monkeypatch.setattr("clip_itm.retrieval.approximate.PQ_CODES", 16)
    made = make_index(tmp_path, kind="exact")
    made.kind = kind
    before, expected = snapshot(tmp_path), made.search(QUERIES, 30)
    grown = LocalIndex.load(tmp_path)
    grown.kind = kind
    vectors = torch.randn(600, 8, generator=torch.Generator().manual_seed(0))
    grown.add([Item(f"n{k}", thumbnail=b"jpeg" * 20) for k in range(600)], vectors)
    with (
        limited(limit),
        pytest.raises(ValueError, match=r"the index cannot be saved \(.*too large.*\); what was saved before is kept"),
    ):
        grown.save(tmp_path)
    assert snapshot(tmp_path) == before
    assert LocalIndex.load(tmp_path, verify=True).search(QUERIES, 30) == expected
    grown.save(tmp_path)
    assert len(LocalIndex.load(tmp_path, verify=True)) == 620
    assert names(tmp_path) == own_files(tmp_path)


class limited:
    """No file of this process may be longer; what is written beyond is an error, as on a full disk."""

    def __init__(self, size: int):
        self.size = size

    def __enter__(self) -> None:
        import resource

        self.handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.before[1]))

    def __exit__(self, *_) -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)
        signal.signal(signal.SIGXFSZ, self.handler)


# Whatever is done to an index, it is what a dict would be

STEP = st.one_of(
    st.tuples(st.just("add"), st.sets(st.integers(0, 15), max_size=5)),
    st.tuples(st.just("delete"), st.sets(st.integers(0, 15), max_size=5)),
    st.tuples(st.sampled_from(["save", "load", "compact", "copy", "refused"]), st.just(set())),
)


@settings(max_examples=50, deadline=None)
@given(steps=st.lists(STEP, max_size=14), dtype=st.sampled_from(["float32", "float16"]))
def test_any_sequence_of_changes_is_what_a_dict_would_be(steps, dtype, tmp_path_factory):
    place = tmp_path_factory.mktemp("index")
    folder, version = place / "0", 0
    index, expected = LocalIndex("text", "model", dtype=dtype), {}
    saved = None
    for do, numbers in [*steps, ("save", ()), ("load", ())]:
        ids = [f"i{number}" for number in sorted(numbers)]
        if do == "add":  # replaces what is there
            index.delete([id for id in ids if id in expected])
            version += 1
            added = [Item(id, caption=f"{id} {version}", thumbnail=bytes([version]) * version or None) for id in ids]
            vectors = torch.tensor([[float(number), version, 1] for number in sorted(numbers)]).reshape(-1, 3)
            index.add(added, vectors)
            for item, vector in zip(added, vectors, strict=True):
                expected.pop(item.id, None)
                expected[item.id] = (item, vector)
        elif do == "delete":
            there = [id for id in ids if id in expected]
            assert index.delete(there) == len(there)
            for id in there:
                del expected[id]
        elif do == "save":
            index.save(folder)
            saved = dict(expected)
        elif do == "load" and saved is not None:
            index, expected = LocalIndex.load(folder, "model", verify=True), dict(saved)
        elif do == "compact":
            index.compact()
            saved = dict(expected) if saved is not None else None
        elif do == "copy":
            folder = place / str(int(folder.name) + 1)
            index.save(folder)
            saved = dict(expected)
        elif do == "refused" and saved is not None:
            with locked(folder, "test"), pytest.raises(ValueError, match="by this very process"):
                index.save(folder)
        assert list(index.items()) == [item for item, _ in expected.values()]
        assert index.ids() == list(expected)
        assert index.find([*expected, "other"], thumbnails=True) == {id: item for id, (item, _) in expected.items()}
        if expected:
            query = torch.tensor([[1.0, -2, 0.5]])
            vectors = torch.stack([vector for _, vector in expected.values()])
            assert torch.equal(index.embeddings_of(list(expected)), vectors)
            scores = (query @ vectors.T)[0].sort(descending=True, stable=True)
            (hits,) = index.search(query, 20)
            assert [hit.score for hit in hits] == scores.values.tolist()
            assert [hit.item.id for hit in hits] == [list(expected)[k] for k in scores.indices.tolist()]
