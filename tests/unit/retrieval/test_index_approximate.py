"""faiss proposes, exact scores decide: recall, scores, deletions, growth and files of hnsw and ivf-pq."""

import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clip_itm.retrieval import approximate
from clip_itm.retrieval.approximate import choose_kind
from clip_itm.retrieval.index import LocalIndex
from clip_itm.retrieval.items import Item

COUNT, WIDTH, TOP_K = 10_500, 16, 10
KINDS = ("hnsw", "ivf-pq")
CPU = torch.device("cpu")


def items(numbers) -> list[Item]:
    return [Item(str(number)) for number in numbers]


def ids(hits) -> list[list[str]]:
    return [[hit.item.id for hit in of_one] for of_one in hits]


def recall(hits, truth) -> float:
    shared = [len(set(found) & set(right)) / len(right) for found, right in zip(ids(hits), ids(truth), strict=True)]
    return float(np.mean(shared))


@pytest.fixture(scope="module")
def vectors() -> torch.Tensor:
    """Around 200 centres."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(200, WIDTH, generator=generator)
    own = torch.randint(200, (COUNT,), generator=generator)
    return F.normalize(centres[own] + 0.6 * torch.randn(COUNT, WIDTH, generator=generator), dim=1)


@pytest.fixture(scope="module")
def queries(vectors) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return F.normalize(vectors[:40] + 0.1 * torch.randn(40, WIDTH, generator=generator), dim=1)


@pytest.fixture(scope="module")
def exact(vectors) -> LocalIndex:
    index = LocalIndex("image", "model", kind="exact")
    index.add(items(range(COUNT)), vectors)
    return index


@pytest.fixture(scope="module")
def saved(vectors, tmp_path_factory) -> dict:
    """A folder per kind, with the first 10,000 vectors."""
    folders = {}
    for kind in KINDS:
        folders[kind] = tmp_path_factory.mktemp("index") / kind
        index = LocalIndex("image", "model", kind=kind)
        index.add(items(range(10_000)), vectors[:10_000])
        index.save(folders[kind])
    return folders


@pytest.fixture
def copied(saved, tmp_path):
    """`copied(kind)`: a folder of its own."""
    return lambda kind: shutil.copytree(saved[kind], tmp_path / kind)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_proposed_has_exact_scores_and_little_is_lost(saved, queries, vectors, kind):
    truth = LocalIndex("image", "model", kind="exact")
    truth.add(items(range(10_000)), vectors[:10_000])
    loaded = LocalIndex.load(saved[kind], "model")
    assert loaded.note == f"{kind} search over 10,000 vectors (as asked for)"
    hits, expected = loaded.search(queries, TOP_K), truth.search(queries, TOP_K)
    # The graph visits 128 of 10,000 vectors that lie in 16 dimensions; the lists scan 64 of 256.
    assert recall(hits, expected) > 0.97
    for query, found in zip(queries, hits, strict=True):
        score = (vectors[:10_000].double() @ query.double()).float().tolist()
        assert all(hit.score == score[int(hit.item.id)] for hit in found)
        assert [hit.score for hit in found] == sorted((hit.score for hit in found), reverse=True)
    assert ids(loaded.search(queries[:1], 3_000)) == ids(truth.search(queries[:1], 3_000)), "no shortlist is worth it"


@pytest.mark.parametrize("kind", KINDS)
def test_new_items_are_found_before_and_after_faiss_has_them(copied, queries, vectors, exact, kind, monkeypatch):
    folder = copied(kind)
    file = json.loads((folder / "index.json").read_text())["shortlist"]["index"]["name"]
    grown = LocalIndex.load(folder)
    grown.add(items(range(10_000, 10_200)), vectors[10_000:10_200])
    (hits,) = grown.search(vectors[10_100:10_101], 1)
    assert hits[0].item.id == "10100"
    grown.save(folder)
    assert grown._shortlist.count == 10_000, "a short tail is searched exactly"
    assert (folder / file).exists()
    monkeypatch.setattr(approximate, "LARGEST_TAIL", 300)
    monkeypatch.setattr(approximate, "LARGEST_TAIL_PART", 0)
    monkeypatch.setattr(approximate, "new_faiss", None)  # what is there is extended, not made again
    grown.add(items(range(10_200, COUNT)), vectors[10_200:])
    assert recall(grown.search(queries, TOP_K), exact.search(queries, TOP_K)) > 0.97
    assert grown._shortlist.count == COUNT
    grown.save(folder)
    assert not (folder / file).exists()
    loaded = LocalIndex.load(folder, verify=True)
    assert loaded.search(queries, TOP_K) == grown.search(queries, TOP_K)
    assert loaded._shortlist.count == COUNT


@pytest.mark.parametrize("kind", KINDS)
def test_deleted_items_are_never_found(copied, queries, exact, kind):
    folder = copied(kind)
    index = LocalIndex.load(folder)
    gone = {hit.item.id for hits in exact.search(queries, 30) for hit in hits if int(hit.item.id) < 10_000}
    index.delete(gone)
    hits = index.search(queries, TOP_K)
    assert not gone & {id for of_one in ids(hits) for id in of_one}
    assert all(len(of_one) == TOP_K for of_one in hits)
    index.save(folder)
    assert LocalIndex.load(folder).search(queries, TOP_K) == hits
    index.delete([str(k) for k in range(3_000) if str(k) not in gone])
    index.save(folder)  # compact: positions are others, and so is the graph
    assert len(index._gallery.dead) == len(index)
    living = LocalIndex("image", "model", kind="exact")
    left = [int(item.id) for item in index.items()]
    living.add(items(left), torch.stack([index.embeddings_of([str(k)])[0] for k in left]))
    if kind == "hnsw":
        assert recall(LocalIndex.load(folder).search(queries, TOP_K), living.search(queries, TOP_K)) > 0.97
    else:
        assert index.note == f"exact search over {len(index):,} vectors (ivf-pq learns from 9,984 or more)"
        assert LocalIndex.load(folder).search(queries, TOP_K) == living.search(queries, TOP_K)


def test_where_too_few_are_proposed_the_search_is_exact(copied, queries, exact, monkeypatch):
    """One list is looked at, and all that is in it is deleted."""
    monkeypatch.setattr(approximate, "IVF_PROBED", 1)
    index = LocalIndex.load(copied("ivf-pq"))
    proposed = index.search(queries[:1], TOP_K)  # loads faiss
    lists = index._shortlist.index
    number = int(lists.quantizer.search(queries[:1].numpy(), 1)[1][0, 0])
    members = set(members_of(lists, number))
    index.delete([str(k) for k in members])
    truth = LocalIndex("image", "model", kind="exact")
    left = [k for k in range(10_000) if k not in members]
    truth.add(items(left), torch.stack([exact.embeddings_of([str(k)])[0] for k in left]))
    hits = index.search(queries[:2], TOP_K)
    assert hits[0] == truth.search(queries[:1], TOP_K)[0]
    assert len(hits[1]) == TOP_K
    assert proposed[0] != hits[0]


def members_of(lists, number: int) -> list[int]:
    import faiss

    return faiss.rev_swig_ptr(lists.invlists.get_ids(number), lists.invlists.list_size(number)).tolist()


def test_a_damaged_file_of_faiss_is_named(copied, queries):
    folder = copied("hnsw")
    (path,) = folder.glob("hnsw-*.faiss")
    content = bytearray(path.read_bytes())
    content[1000] ^= 0xFF
    path.write_bytes(content)
    loaded = LocalIndex.load(folder)
    with pytest.raises(ValueError, match=r"hnsw-.*\.faiss is not what was saved.*index the gallery again"):
        loaded.search(queries, 1)
    with pytest.raises(ValueError, match="is not what was saved"):
        LocalIndex.load(folder, verify=True)
    path.write_bytes(content[:-8])
    with pytest.raises(ValueError, match=r"hnsw-.*\.faiss has .* bytes, index.json says"):
        LocalIndex.load(folder)


def test_a_copy_that_fails_leaves_the_index_with_its_own_files(copied, queries, tmp_path, monkeypatch):
    folder = copied("hnsw")
    index = LocalIndex.load(folder)
    hits = index.search(queries, TOP_K)
    with monkeypatch.context() as patch:
        patch.setattr("clip_itm.retrieval.storage.write_json", None)
        with pytest.raises(TypeError):
            index.save(tmp_path / "copy")
    index.save(folder)
    assert LocalIndex.load(folder, verify=True).search(queries, TOP_K) == hits
    index.save(tmp_path / "copy")
    shutil.rmtree(folder)
    assert LocalIndex.load(tmp_path / "copy", verify=True).search(queries, TOP_K) == hits


@pytest.mark.parametrize(
    ("count", "note"),
    [
        (12_000, "exact search over 12,000 vectors (up to 200,000; hnsw beyond)"),
        (200_001, "hnsw search over 200,001 vectors (exact up to 200,000, ivf-pq beyond 2,000,000)"),
        (3_000_000, "ivf-pq search over 3,000,000 vectors (hnsw up to 2,000,000)"),
    ],
)
def test_auto_chooses_by_size_and_says_so(count, note):
    assert choose_kind("auto", count, CPU) == (note.split()[0], note)
    assert choose_kind("auto", count, torch.device("cuda"))[1] == f"exact search over {count:,} vectors (on cuda)"


def test_auto_takes_effect_at_the_first_search(monkeypatch, vectors, queries):
    monkeypatch.setattr(approximate, "EXACT_UP_TO", 1_000)
    index = LocalIndex("image", "model")
    index.add(items(range(1_000)), vectors[:1_000])
    index.search(queries, TOP_K)
    assert index._shortlist is None
    index.add(items(range(1_000, 1_100)), vectors[1_000:1_100])
    index.search(queries, TOP_K)
    assert index._shortlist.kind == "hnsw"
    assert index.note.startswith("hnsw search over 1,100 vectors")


def test_without_faiss(monkeypatch):
    monkeypatch.setattr(approximate, "find_spec", lambda name: None)
    kind, note = choose_kind("auto", 300_000, CPU)
    assert (kind, note) == (
        "exact",
        "exact search over 300,000 vectors (hnsw would be faster: pip install 'clip-itm[search]')",
    )
    with pytest.raises(ValueError, match=r"kind hnsw needs faiss: pip install 'clip-itm\[search\]'"):
        LocalIndex("image", "model", kind="hnsw")


def test_lists_grow_with_the_gallery():
    assert [approximate.num_lists(count) for count in (9_984, 1_000_000, 4_000_000)] == [256, 4_000, 8_000]
