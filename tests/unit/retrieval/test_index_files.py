"""Saved indexes: what is loaded equals what was saved, crashes leave the old one, damage is named."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from clip_itm.retrieval import index as index_module
from clip_itm.retrieval import storage
from clip_itm.retrieval.index import LocalIndex, open_index
from support.paths import ROOT
from support.tiny_index import QUERIES, VECTORS, file_of, items, make_index, names, same, snapshot, write_index_file


def kinds(folder: Path) -> list[str]:
    """Of the files, without their tokens."""
    return sorted(path.name.partition("-")[0] for path in folder.iterdir())


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_is_loaded_equals_what_was_saved(tmp_path, dtype):
    made = LocalIndex("text", "model", dtype=dtype)
    embeddings = torch.randn(20, 3, 8)
    made.add(items(*range(10)), embeddings[:10], VECTORS[:10])
    made.add(items(*range(10, 20)), embeddings[10:], VECTORS[10:20])
    made.delete(["i3", "i12"])
    before = made.search(QUERIES, 100)
    made.save(tmp_path / "new" / "gallery")
    loaded = LocalIndex.load(tmp_path / "new" / "gallery", "model", verify=True)
    assert same(made, loaded)
    assert loaded.search(QUERIES, 100) == before
    assert (loaded.modality, loaded.dtype, len(loaded), "i3" in loaded, "i4" in loaded) == (
        "text",
        dtype,
        18,
        False,
        True,
    )
    kept = embeddings.to(index_module.DTYPES[dtype]).float()
    assert torch.equal(loaded.embeddings_of(["i19", "i0"]), kept[[19, 0]])


def test_saving_again_writes_what_is_new(tmp_path):
    make_index(tmp_path)
    before = snapshot(tmp_path)
    grown = LocalIndex.load(tmp_path)
    grown.add(items(20, 21), VECTORS[20:22])
    grown.delete(["i0"])
    grown.save(tmp_path)
    after = snapshot(tmp_path)
    assert {name: after[name] for name in before if name != "index.json"} == {
        name: digest for name, digest in before.items() if name != "index.json"
    }
    new = sorted(name.partition("-")[0] for name in names(tmp_path) - before.keys())
    assert new == ["deleted", "items", "thumbnails", "vectors"]
    assert same(LocalIndex.load(tmp_path, verify=True), grown)
    fresh = make_index()
    fresh.add(items(20, 21), VECTORS[20:22])
    fresh.delete(["i0"])
    assert same(fresh, grown)
    grown.save(tmp_path)  # nothing new
    LocalIndex.load(tmp_path).save(tmp_path)
    assert snapshot(tmp_path) == after


def test_many_deleted_and_many_segments_are_rewritten(tmp_path, monkeypatch):
    made = make_index(tmp_path)
    made.delete([f"i{k}" for k in range(6)])
    expected = made.search(QUERIES, 100)
    made.save(tmp_path)
    assert kinds(tmp_path) == ["index.json", "items", "thumbnails", "vectors"]
    assert made.search(QUERIES, 100) == LocalIndex.load(tmp_path, verify=True).search(QUERIES, 100) == expected
    monkeypatch.setattr(index_module, "MOST_SEGMENTS", 3)
    for k in range(20, 24):
        made.add(items(k), VECTORS[k : k + 1])
        made.save(tmp_path)
    assert len(made._gallery.segments) <= 3
    assert same(made, LocalIndex.load(tmp_path, verify=True))
    assert [item.id for item in made.items()] == [f"i{k}" for k in range(6, 24)]


def test_compact_drops_deleted_items_for_good(tmp_path):
    made = make_index(tmp_path)
    made.delete(["i2"])
    made.add(items(40), VECTORS[40:41])
    expected = made.search(QUERIES, 100)
    made.compact()
    assert b"photos/2.jpg" not in file_of(tmp_path, "items").read_bytes()
    assert made.search(QUERIES, 100) == LocalIndex.load(tmp_path).search(QUERIES, 100) == expected
    made.delete([item.id for item in made.items()])
    made.compact()
    assert names(tmp_path) == {"index.json"}
    assert len(LocalIndex.load(tmp_path)) == 0


def test_vectors_stay_in_the_file(tmp_path):
    """Mapped, and compared with their checksums before they are first used, not as they are loaded."""
    make_index(tmp_path)
    loaded, other = LocalIndex.load(tmp_path), LocalIndex.load(tmp_path)
    before = loaded.search(QUERIES, 5)
    path = file_of(tmp_path, "vectors")
    with path.open("r+b") as file:
        file.seek(path.read_bytes().index(VECTORS[19].numpy().tobytes()))
        file.write(np.float32(1000).tobytes())
    assert loaded.search(QUERIES, 5) != before, "it shares the pages of the file"
    with pytest.raises(ValueError, match=r"vectors-.*\.safetensors is not what was saved.*index the gallery again"):
        other.search(QUERIES, 5)


class Killed(BaseException):
    """Not an error that anything handles."""


@pytest.mark.parametrize("step", ["vectors", "thumbnails", "items", "deleted", "index", "index replaced"])
@pytest.mark.parametrize("compact", [False, True], ids=["add", "compact"])
def test_a_crash_leaves_the_old_index_or_the_new(tmp_path, monkeypatch, step, compact):
    """Killed as each file is about to be written; then everything goes on."""
    make_index(tmp_path)
    before, old = snapshot(tmp_path), LocalIndex.load(tmp_path)
    grown = LocalIndex.load(tmp_path)
    grown.add(items(20, 21), VECTORS[20:22])
    grown.delete(["i1"])
    expected = grown.search(QUERIES, 100)
    write = storage.replacing

    def killing(path, *options):
        if Path(path).name.startswith(step):
            raise Killed
        return write(path, *options)

    def killing_afterwards(path, content):
        write_json(path, content)
        if path.name == "index.json":
            raise Killed

    if step == "index replaced":
        write_json = storage.write_json
        monkeypatch.setattr(storage, "write_json", killing_afterwards)
    else:
        for module in ("files", "retrieval.storage", "retrieval.rows"):
            monkeypatch.setattr(f"clip_itm.{module}.replacing", killing)
    if compact and step == "deleted":
        return  # nothing is deleted then
    with pytest.raises(Killed):
        grown.compact() if compact else grown.save(tmp_path)
    monkeypatch.undo()
    found = LocalIndex.load(tmp_path, verify=True)
    if step == "index replaced":
        assert found.search(QUERIES, 100) == expected
        return
    assert same(found, old)
    assert before.items() <= snapshot(tmp_path).items()
    assert grown.search(QUERIES, 100) == expected, "nothing in memory is lost"
    grown.save(tmp_path)
    assert LocalIndex.load(tmp_path, verify=True).search(QUERIES, 100) == expected
    assert names(tmp_path) >= {
        file["name"] for file in storage.named_files(json.loads((tmp_path / "index.json").read_text()))
    }


def test_the_first_save_may_be_repeated_after_a_crash(tmp_path, monkeypatch):
    made = make_index()
    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_json", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            made.save(tmp_path)
    with pytest.raises(ValueError, match=r"holds no index: there is no index\.json"):
        LocalIndex.load(tmp_path)
    made.save(tmp_path)
    assert same(made, LocalIndex.load(tmp_path, verify=True))


def test_another_process_is_not_overwritten(tmp_path):
    make_index(tmp_path)
    first, second = LocalIndex.load(tmp_path), LocalIndex.load(tmp_path)
    second.add(items(30), VECTORS[30:31])
    second.save(tmp_path)
    first.add(items(31), VECTORS[31:32])
    for write in (lambda: first.save(tmp_path), first.compact):
        with pytest.raises(ValueError, match="changed by another process since this index was loaded; load it again"):
            write()
    assert same(LocalIndex.load(tmp_path, verify=True), second)


def test_another_index_is_not_overwritten(tmp_path):
    saved = make_index(tmp_path / "a")
    with pytest.raises(ValueError, match="already holds an index; load it and add to it"):
        make_index(tmp_path / "a", count=3)
    assert same(LocalIndex.load(tmp_path / "a"), saved)
    saved.delete(["i4"])
    saved.save(tmp_path / "b")  # a copy, which it now belongs to
    assert same(LocalIndex.load(tmp_path / "b", verify=True), saved)
    assert "i4" in LocalIndex.load(tmp_path / "a", verify=True)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "gallery").write_text("mine")
    with pytest.raises(ValueError, match="gallery is a file; choose a folder"):
        make_index(tmp_path / "gallery")
    with pytest.raises(ValueError, match="gallery holds no index"):
        LocalIndex.load(tmp_path / "gallery")


def edit(**changes):
    def damage(folder: Path) -> None:
        content = json.loads((folder / "index.json").read_text())
        for key, value in changes.items():
            content.pop(key) if value is None else content.__setitem__(key, value)
        write_index_file(folder, content)

    return damage


def edit_segment(**changes):
    def damage(folder: Path) -> None:
        content = json.loads((folder / "index.json").read_text())
        content["segments"][0] |= changes
        write_index_file(folder, content)

    return damage


def truncate(kind: str):
    def damage(folder: Path) -> None:
        path = file_of(folder, kind)
        os.truncate(path, path.stat().st_size // 2)

    return damage


def flip(kind: str, place: int):
    def damage(folder: Path) -> None:
        content = bytearray(file_of(folder, kind).read_bytes())
        content[place] ^= 0xFF
        file_of(folder, kind).write_bytes(content)

    return damage


OUTSIDE = {"name": "../vectors-0000.safetensors", "bytes": 1, "sha256": ""}
DAMAGES = {
    "no index.json": (lambda folder: (folder / "index.json").unlink(), "holds no index.*clip-itm index"),
    "no folder": (shutil.rmtree, "holds no index"),
    "half an index.json": (
        lambda folder: os.truncate(folder / "index.json", 300),
        r"index\.json is not the index\.json of a search index",
    ),
    "index.json of something else": (
        lambda folder: (folder / "index.json").write_text("[1]"),
        r"index\.json is not the index\.json of a search index",
    ),
    "another format": (edit(format="faiss"), "is not the index.json of a search index"),
    "a later version": (edit(version=3), "version 3 of the format, this clip_itm reads version 2"),
    "a key is missing": (edit(modality=None), r"index\.json is damaged \(KeyError\('modality'\)\)"),
    "a value of another type": (edit(segments=3), r"index\.json is damaged"),
    "an unknown kind": (edit(kind="lsh"), "kind is 'lsh'"),
    "another count": (edit_segment(count=19), "not 19 items"),
    "a file elsewhere": (edit_segment(vectors=OUTSIDE), r"names '\.\./vectors-0000.*not a file of an index"),
    "another type of numbers": (edit(dtype="float16"), "torch.float32, not 20 x torch.float16"),
    "vectors are missing": (lambda folder: file_of(folder, "vectors").unlink(), "vectors.*is missing"),
    "half the vectors": (
        truncate("vectors"),
        r"vectors-.*\.safetensors has .* bytes, index.json says",
    ),
    "a damaged header": (flip("vectors", 9), r"vectors-.*\.safetensors is not a safetensors file"),
    "half the items": (truncate("items"), r"items-.*\.parquet has .* bytes"),
    "a changed item": (flip("items", 300), r"items-.*\.parquet is not what was saved"),
    "half the thumbnails": (truncate("thumbnails"), r"thumbnails-.*\.safetensors has .* bytes"),
    "changed deletions": (flip("deleted", 40), r"deleted-.*\.npz is not what was saved"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named(tmp_path, name):
    folder = tmp_path / "gallery"
    made = make_index(folder)
    made.delete(["i1"])
    made.save(folder)
    damage, message = DAMAGES[name]
    damage(folder)
    with pytest.raises(ValueError, match=message) as raised:
        LocalIndex.load(folder)
    assert str(folder) in str(raised.value) or name == "an unknown kind"


def test_verify_reads_the_vectors(tmp_path):
    make_index(tmp_path)
    flip("vectors", file_of(tmp_path, "vectors").read_bytes().index(VECTORS[5].numpy().tobytes()))(tmp_path)
    LocalIndex.load(tmp_path)  # of the same size: only reading all of it tells
    with pytest.raises(ValueError, match=r"vectors-.*\.safetensors is not what was saved.*index the gallery again"):
        LocalIndex.load(tmp_path, verify=True)


def test_the_index_of_another_model_is_refused(tmp_path):
    make_index(tmp_path)
    assert open_index(str(tmp_path), "model").model_sha256 == "model"
    assert len(open_index(tmp_path, None)) == 20
    with pytest.raises(ValueError, match=r"made by another model \(model, not other\).*index the gallery again"):
        open_index(tmp_path, "other")


def test_a_loaded_index_checks_what_is_added(tmp_path):
    loaded = make_index(tmp_path) and LocalIndex.load(tmp_path)
    with pytest.raises(ValueError, match=r"vectors \(7,\).*do not fit an index of vectors \(8,\)"):
        loaded.add(items(50), torch.ones(1, 7))
    with pytest.raises(ValueError, match="'i5' is already in the index"):
        loaded.add(items(5), torch.ones(1, 8))


def test_the_code_of_the_docs_runs(tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "search_index.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    best = names["hits"][0]
    assert f"# ('{best.item.path}', {best.score}, {best.rank})" in code
    assert f"# {capsys.readouterr().out.strip()}\n" in code
