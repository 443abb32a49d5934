"""A Qdrant collection (embedded) answers as the local index does; the same code talks to a server."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from clip_itm.retrieval import qdrant
from clip_itm.retrieval.index import LocalIndex, open_index
from clip_itm.retrieval.items import Item
from clip_itm.retrieval.qdrant import QdrantIndex

GENERATOR = torch.Generator().manual_seed(0)
VECTORS = torch.randint(-2, 3, (150, 6), generator=GENERATOR) / 4  # many ties
QUERIES = torch.randint(-2, 3, (7, 6), generator=GENERATOR) / 4
ITEMS = [Item(str(k), path=f"{k}.jpg", caption=f"é {k}", thumbnail=b"jpeg" * k or None) for k in range(150)]


@pytest.fixture
def address(tmp_path) -> str:
    return f"qdrant+path:{tmp_path / 'store'}#gallery"


@pytest.fixture
def made(address):
    index = QdrantIndex(address, "image", "model")
    yield index
    index.close()


def test_it_answers_as_the_local_index(made, address, monkeypatch):
    monkeypatch.setattr(qdrant, "POINTS_AT_ONCE", 16)
    monkeypatch.setattr(qdrant, "QUERIES_AT_ONCE", 3)
    local = LocalIndex("image", "model")
    for index in (local, made):
        index.add(ITEMS[:100], VECTORS[:100])
        index.add(ITEMS[100:], VECTORS[100:])
        assert index.delete(["5", "7", "120"]) == 3
        index.add(ITEMS[7:8], VECTORS[7:8])
    for top_k in (1, 4, 20, 500):
        assert made.search(QUERIES, top_k) == local.search(QUERIES, top_k)
    assert list(made.items()) == list(local.items())
    assert (len(made), "5" in made, "7" in made) == (148, False, True)
    assert torch.equal(made.embeddings_of(["9", "149"]), local.embeddings_of(["9", "149"]))
    made.close()
    again = open_index(address, "model")
    assert again.search(QUERIES, 9) == local.search(QUERIES, 9)
    again.add([Item("new")], torch.full((1, 6), 9.0))
    assert [item.id for item in again.items()][-1] == "new"
    again.close()


def test_scores_are_those_of_the_local_index_to_the_last_bit(made):
    vectors = F.normalize(torch.randn(120, 96, generator=GENERATOR), dim=1)
    vectors[60:] = vectors[:60]
    queries = F.normalize(torch.randn(5, 96, generator=GENERATOR), dim=1)
    local = LocalIndex("image", "model")
    for index in (local, made):
        index.add(ITEMS[:120], vectors)
    assert made.search(queries, 25) == local.search(queries, 25)


def test_more_ties_than_it_asks_for_at_first(made):
    made.add(ITEMS[:100], torch.ones(100, 6))
    assert [hit.item.id for hit in made.search(torch.ones(1, 6), 3)[0]] == ["0", "1", "2"]


def test_sets_are_kept_beside_their_vectors(made, address):
    embeddings = torch.randn(4, 3, 2, 5, generator=GENERATOR)
    made.add(ITEMS[:4], embeddings, embeddings.mean((1, 2)))
    assert torch.equal(made.embeddings_of(["3", "0"]), embeddings[[3, 0]])
    made.close()
    again = open_index(address)
    assert torch.equal(again.embeddings_of(["3", "0"]), embeddings[[3, 0]])
    with pytest.raises(ValueError, match=r"embeddings None do not fit an index of vectors \(5,\) with"):
        again.add(ITEMS[5:6], torch.ones(1, 5))
    again.close()


@pytest.mark.parametrize(
    ("do", "message"),
    [
        (lambda made: made.add(ITEMS[1:3], VECTORS[1:3]), r"2 ids \('1', '2'\) are already in the index"),
        (lambda made: made.add([Item("x"), Item("x")], VECTORS[:2]), "'x' is given more than once"),
        (lambda made: made.add([Item("")], VECTORS[:1]), "non-empty text"),
        (lambda made: made.add([Item("x")], torch.full((1, 6), torch.nan)), "'x', have values that are not finite"),
        (lambda made: made.add([Item("x")], torch.ones(1, 5)), r"vectors \(5,\)"),
        (lambda made: made.delete(["1", "x"]), "'x' is not in the index"),
        (lambda made: made.embeddings_of(["x"]), "'x' is not in the index"),
        (lambda made: made.search(torch.ones(1, 5), 1), r"\[Q, 6\]"),
        (lambda made: made.search(torch.ones(1, 6), 0), "top_k is 0"),
    ],
)
def test_mistakes_are_told_and_change_nothing(made, do, message):
    made.add(ITEMS[:10], VECTORS[:10])
    with pytest.raises(ValueError, match=message):
        do(made)
    assert list(made.items()) == ITEMS[:10]


def test_an_empty_collection_says_so(made):
    with pytest.raises(ValueError, match="the index is empty"):
        made.search(torch.ones(1, 6), 1)
    assert (len(made), list(made.items()), "x" in made) == (0, [], False)
    with pytest.raises(ValueError, match="'x' is not in the index"):
        made.embeddings_of(["x"])


def test_what_a_collection_is_for_is_checked(made, address):
    made.add(ITEMS[:2], VECTORS[:2])
    with pytest.raises(ValueError, match="already accessed by another instance"):
        open_index(address)
    made.close()
    with pytest.raises(ValueError, match="made by another model"):
        open_index(address, "other")
    with pytest.raises(ValueError, match="an index of modality image, not text"):
        QdrantIndex(address, "text", "model")
    with pytest.raises(ValueError, match="there is no such collection"):
        open_index(address.replace("#gallery", "#photos"))
    client, _ = qdrant.connect(address)
    client.create_collection("foreign", {})
    client.close()
    with pytest.raises(ValueError, match="not made by this version of clip_itm"):
        open_index(address.replace("#gallery", "#foreign"))


@pytest.mark.parametrize(
    "wrong",
    ["qdrant+http://host:6333", "qdrant+http://host/a/b", "qdrant+ftp://host/a", "qdrant+path:folder", "qdrant+"],
)
def test_addresses_are_checked(wrong):
    with pytest.raises(ValueError, match=r"expected qdrant\+http://HOST:PORT/COLLECTION or"):
        open_index(wrong)


def test_a_server_that_does_not_answer_is_named():
    with pytest.raises(ValueError, match=r"qdrant\+http://127\.0\.0\.1:9/gallery: Qdrant does not answer"):
        open_index("qdrant+http://127.0.0.1:9/gallery")


def test_a_process_ends_without_a_word(address):
    code = (
        "import sys\n"
        "from clip_itm.retrieval.qdrant import QdrantIndex\n"
        "index = QdrantIndex(sys.argv[1], 'image', 'model')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, address], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_without_the_client(monkeypatch):
    monkeypatch.setitem(sys.modules, "qdrant_client", None)
    with pytest.raises(ValueError, match=r"pip install 'clip-itm\[qdrant\]'"):
        open_index("qdrant+http://host/gallery")
