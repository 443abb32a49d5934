"""Whatever happens to a file of an index is detected, or it is harmless: never silent. And indexes of version 1."""

import json
import random
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from clip_itm.retrieval.index import LocalIndex
from clip_itm.retrieval.items import Item
from clip_itm.retrieval.storage import PENDING, file_entry, index_damages, named_files
from clip_itm.verify import verify
from support.paths import TESTS
from support.tiny_index import QUERIES, VECTORS, file_of, items, make_index, snapshot, write_index_file

VERSION_1 = TESTS / "index_v1"  # what clip_itm wrote before files had checksums of blocks
KINDS = ["deleted", "embeddings", "hnsw", "index.json", "items", "thumbnails", "vectors"]


def save(folder: Path, seed: int) -> Path:
    """An index with every kind of file."""
    made = LocalIndex("image", "model", "hnsw")
    photos = [Item(f"i{k}", f"{k}.jpg", None, bytes([k, seed]) * k or None, 2**63 + k, seed + k) for k in range(40)]
    embeddings = torch.randn(40, 3, 8, generator=torch.Generator().manual_seed(seed))
    made.add(photos, embeddings, embeddings.mean(1))
    made.save(folder)
    made.delete([f"i{7 + seed}"])
    made.save(folder)
    return folder


def use(folder: Path) -> tuple:
    """All that an index gives."""
    index = LocalIndex.load(folder)
    found = list(index.items())
    assert index.search(QUERIES, 1)  # by the graph: 4 times 4 candidates are fewer than 39
    return found, index.search(QUERIES, 50), index.embeddings_of([item.id for item in found]).tolist(), len(index)


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> tuple[Path, Path]:
    pytest.importorskip("faiss")
    place = tmp_path_factory.mktemp("two")
    return save(place / "one", 0), save(place / "other", 1)


def damages_of(kind: str, other: Path):
    """Functions that damage a file, by name."""
    flips = random.Random(kind)

    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[flips.randrange(len(content))] ^= 1 << flips.randrange(8)
        path.write_bytes(content)

    def zero(path: Path) -> None:
        content = bytearray(path.read_bytes())
        start = flips.randrange(len(content))
        content[start : start + 512] = bytes(len(content[start : start + 512]))
        path.write_bytes(content)

    def swap(name: str):
        def do(path: Path) -> None:
            second = path.parent / "index.json" if name == "index.json" else file_of(path.parent, name)
            one, two = path.read_bytes(), second.read_bytes()
            path.write_bytes(two)
            second.write_bytes(one)

        return do

    yield "missing", Path.unlink
    yield "empty", lambda path: path.write_bytes(b"")
    yield "a folder", lambda path: (path.unlink(), path.mkdir())
    for part in (0.01, 0.5, 0.99):
        yield (
            f"{part} of it",
            lambda path, part=part: path.write_bytes(path.read_bytes()[: int(len(path.read_bytes()) * part)]),
        )
    yield "longer", lambda path: path.write_bytes(path.read_bytes() + b"\0")
    yield "another index's", lambda path: path.write_bytes(other.read_bytes())
    yield from ((f"swapped with {name}", swap(name)) for name in KINDS if name != kind)
    yield from ((f"flip {k}", flip) for k in range(25))
    yield from ((f"zeros {k}", zero) for k in range(5))


@pytest.mark.parametrize("kind", KINDS)
def test_no_damage_is_silent(two, tmp_path, kind):
    one, other = two
    expected, intact = use(one), snapshot(one)
    assert index_damages(one) == []
    of_other = other / "index.json" if kind == "index.json" else file_of(other, kind)
    harmless = []
    for name, damage in damages_of(kind, of_other):
        folder = tmp_path / name.replace(" ", "-")
        shutil.copytree(one, folder)
        damage(folder / "index.json" if kind == "index.json" else file_of(folder, kind))
        told = index_damages(folder)
        found = refusal = None
        try:
            found = use(folder)
        except ValueError as error:
            refusal = str(error)
        if refusal is None:
            assert found == expected, name
            harmless.append(name)
        else:
            assert str(folder) in refusal, name
            assert told, name
        assert all(str(folder) in sentence for sentence in told), name
        if kind != "index.json" and {path.name for path in folder.iterdir() if path.is_file()} == intact.keys():
            assert told or snapshot(folder) == intact, name
    assert len(harmless) < 20, harmless
    if kind != "index.json":  # zeros may fall on zeros, spaces in JSON are free
        assert not [name for name in harmless if "zeros" not in name]


def test_verify_tells_every_damaged_file(two, tmp_path):
    folder = shutil.copytree(two[0], tmp_path / "copy")
    for kind in ("vectors", "thumbnails", "items"):
        content = bytearray(file_of(folder, kind).read_bytes())
        content[len(content) // 2] ^= 1
        file_of(folder, kind).write_bytes(content)
    file_of(folder, "hnsw").unlink()
    told = index_damages(str(folder))
    assert len(told) == 4
    for kind in ("vectors", "thumbnails", "items", "hnsw"):
        assert sum(f"{kind}-" in sentence for sentence in told) == 1
    assert index_damages(tmp_path) == [
        f"{tmp_path} holds no index: there is no index.json; make one with clip-itm index"
    ]
    with pytest.raises(ValueError, match=r"vectors-.*items-|items-.*vectors-"):
        LocalIndex.load(folder, verify=True)


def test_an_index_json_that_no_longer_says_what_it_is_is_damage_and_not_a_stranger(two, tmp_path):
    folder = shutil.copytree(two[0], tmp_path / "copy")
    path = folder / "index.json"
    whole = path.read_bytes()
    for content in (b"", b"{", whole[:20], bytes(len(whole)), whole.replace(b"search", b"sdarch")):
        path.write_bytes(content)
        assert str(path) in said(folder), content[:40]
    path.unlink()
    assert "there is no index.json" in said(folder)
    (folder / PENDING).write_text("{}")  # a first save was killed: nothing was promised
    assert said(folder) == ""


def test_one_file_of_an_index_is_compared_with_its_index_json(two, tmp_path):
    folder = shutil.copytree(two[0], tmp_path / "copy")
    paths = [path for path in sorted(folder.iterdir()) if path.is_file()]
    assert all(said(path) == "" for path in paths)
    for path in paths:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        assert str(path) in said(path)
        assert path.name == "index.json" or said(folder / "index.json") == ""
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    (folder / "notes.txt").write_text("of the user")
    with pytest.raises(ValueError, match="carries no checksum"):
        verify(folder / "notes.txt")


def said(place: Path) -> str:
    return "\n".join(sentence for part in verify(place) for sentence in part.damages)


@pytest.mark.parametrize("text", ["[" * 100_000, "{" * 5, '{"format": ' + "1" * 6000 + "}", "\ud800", "null", "NaN"])
def test_an_index_json_that_is_none(tmp_path, text):
    (tmp_path / "index.json").write_text(text, errors="surrogatepass")
    with pytest.raises(ValueError, match=r"index\.json is not the index\.json of a search index"):
        LocalIndex.load(tmp_path)
    assert len(index_damages(tmp_path)) == 1
    with pytest.raises(ValueError, match=r"not the index\.json of a search index"):
        make_index(tmp_path)


def other_vectors(path: Path) -> None:
    import faiss

    faiss.write_index(faiss.IndexFlatIP(8), str(path))


MADE = {
    "a graph of nothing": ("hnsw", lambda path: path.write_bytes(b"IHNs" + bytes(40)), "cannot be read by this faiss"),
    "a graph of endless size": ("hnsw", lambda path: path.write_bytes(b"IHNs" + b"\x7f" * 80), "cannot be read by"),
    "a graph of others": ("hnsw", other_vectors, "holds 0 vectors, not 40"),
    "items that are no parquet": ("items", lambda path: path.write_bytes(b"PAR1PAR1"), "is not a Parquet file"),
    "items of others": ("items", lambda path: pq.write_table(pa.table({"a": [1]}), path), "has 1 row of a, not 40"),
    "vectors of endless size": ("vectors", lambda path: path.write_bytes(b"\xff" * 64), "is not a safetensors file"),
    "deletions that are no array": ("deleted", lambda path: path.write_bytes(b"PK" + bytes(30)), "cannot be read"),
}


@pytest.mark.parametrize("what", MADE)
def test_files_that_were_made_to_fit_are_named(two, tmp_path, what):
    """With the size and the checksum that index.json says, so that only reading them tells."""
    folder = shutil.copytree(two[0], tmp_path / "copy")
    kind, make, message = MADE[what]
    path = file_of(folder, kind)
    make(path)
    content = json.loads((folder / "index.json").read_text())
    for entry in named_files(content):
        if entry["name"] == path.name:
            entry |= file_entry(path)
    write_index_file(folder, content)
    with pytest.raises(ValueError, match=message) as raised:
        use(folder)
    assert str(path) in str(raised.value)


@pytest.fixture
def version_1(tmp_path) -> Path:
    return shutil.copytree(VERSION_1, tmp_path / "version 1")


def test_an_index_of_version_1_is_read_and_extended(version_1):
    before = snapshot(version_1)
    expected = make_index(count=12)
    expected.delete(["i3"])
    index = LocalIndex.load(version_1, "model", verify=True)
    assert list(index.items()) == list(expected.items())
    assert index.search(QUERIES, 20) == expected.search(QUERIES, 20)
    index.save(version_1)
    assert snapshot(version_1) == before, "nothing to write"
    for one in (index, expected):
        one.add(items(20), VECTORS[20:21])
        one.delete(["i4"])
    index.save(version_1)
    assert json.loads((version_1 / "index.json").read_text())["version"] == 2
    assert not (version_1 / "deleted-0001.npz").exists()
    again = LocalIndex.load(version_1, "model", verify=True)
    assert list(again.items()) == list(expected.items())
    assert again.search(QUERIES, 20) == expected.search(QUERIES, 20)
    again.compact()
    assert not list(version_1.glob("*-000*"))
    assert LocalIndex.load(version_1, verify=True).search(QUERIES, 20) == expected.search(QUERIES, 20)


@pytest.mark.parametrize("name", [path.name for path in VERSION_1.iterdir() if path.name != "index.json"])
def test_verify_checks_version_1_by_sha256(version_1, name):
    content = bytearray((version_1 / name).read_bytes())
    content[-2] ^= 4
    (version_1 / name).write_bytes(content)
    (told,) = index_damages(version_1)
    assert told.startswith(f"{version_1 / name} is n")
