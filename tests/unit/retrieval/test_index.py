"""The index in memory gives what sorting all scores gives; whatever does not fit is refused and changes nothing."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_itm.evaluation.ranking import compute_ranks
from clip_itm.retrieval import exact, gallery, index
from clip_itm.retrieval.index import LocalIndex
from clip_itm.retrieval.items import Item


def make_items(count: int, start: int = 0) -> list[Item]:
    return [Item(f"i{number}", path=f"{number}.jpg") for number in range(start, start + count)]


def make_index(vectors: torch.Tensor, **options) -> LocalIndex:
    made = LocalIndex("image", "model", **options)
    made.add(make_items(len(vectors)), vectors)
    return made


def found(hits) -> list[list[tuple[str, float, int]]]:
    return [[(hit.item.id, hit.score, hit.rank) for hit in of_one] for of_one in hits]


def brute_force(vectors: torch.Tensor, ids: list[str], queries: torch.Tensor, top_k: int):
    """Everything scored and sorted; scores as float64 gives them, rounded."""
    answers = []
    for scores in (queries.double() @ vectors.double().T).float():
        order = torch.sort(scores, descending=True, stable=True).indices[:top_k].tolist()
        answers.append([(ids[k], float(scores[k]), 1 + int((scores > scores[k]).sum())) for k in order])
    return answers


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of a few vectors and queries, so that a small gallery has many."""
    monkeypatch.setattr(gallery, "BLOCK_BYTES", 4 * 40)
    monkeypatch.setattr(exact, "BLOCK_BYTES", 4 * 40)
    monkeypatch.setattr(index, "QUERIES_AT_ONCE", 3)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
@pytest.mark.usefixtures("small_blocks")
def test_search_is_brute_force(data):
    """Few values, so that ties and duplicates are everywhere; parts added in turn; some deleted, some of them again."""
    width, dtype = data.draw(st.integers(1, 5)), data.draw(st.sampled_from(["float32", "float16"]))
    sizes = data.draw(st.lists(st.integers(1, 25), min_size=1, max_size=4))
    total, generator = sum(sizes), torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    vectors = torch.randint(-2, 3, (total, width), generator=generator) / 4
    queries = torch.randint(-2, 3, (data.draw(st.integers(1, 8)), width), generator=generator) / 4
    made, start = LocalIndex("image", "model", dtype=dtype), 0
    for size in sizes:
        made.add(make_items(size, start), vectors[start : start + size])
        start += size
    deleted = data.draw(st.sets(st.integers(0, total - 1), max_size=total - 1))
    assert made.delete([f"i{k}" for k in deleted]) == len(deleted)
    living = [k for k in range(total) if k not in deleted]
    ids = [f"i{k}" for k in living]
    top_k = data.draw(st.integers(1, total + 3))
    assert found(made.search(queries, top_k)) == brute_force(vectors[living], ids, queries, top_k)
    assert [item.id for item in made.items()] == ids
    assert len(made) == len(ids)
    if deleted:  # a deleted id is free again, and comes last
        again = min(deleted)
        made.add([Item(f"i{again}")], vectors[again : again + 1])
        order = [*living, again]
        expected = brute_force(vectors[order], [f"i{k}" for k in order], queries, top_k)
        assert found(made.search(queries, top_k)) == expected


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_scores_depend_on_the_two_vectors_only(monkeypatch, dtype):
    """Duplicates tie wherever they lie, a query scores alone as in a batch, and small blocks change nothing."""
    generator = torch.Generator().manual_seed(0)
    vectors = F.normalize(torch.randn(900, 96, generator=generator), dim=1)
    vectors[450:] = vectors[:450]
    queries = F.normalize(torch.randn(40, 96, generator=generator), dim=1)
    made = make_index(vectors, dtype=dtype)
    together = found(made.search(queries, 60))
    assert together == brute_force(vectors.to(getattr(torch, dtype)), [f"i{k}" for k in range(900)], queries, 60)
    assert all(
        first[1] == second[1] and first[2] == second[2]
        for hits in together
        for first, second in zip(hits[::2], hits[1::2], strict=True)
    )
    assert [found(made.search(query[None], 60))[0] for query in queries] == together
    monkeypatch.setattr(gallery, "BLOCK_BYTES", 4 * 96 * 7)
    assert found(made.search(queries, 60)) == together


def test_ranks_are_those_of_the_evaluator():
    """Text to image, over a gallery with duplicates."""
    generator = torch.Generator().manual_seed(1)
    images = F.normalize(torch.randn(200, 64, generator=generator), dim=1)
    images[150:] = images[100:150]
    owner = torch.arange(200).repeat_interleave(3)
    texts = F.normalize(images[owner] + 0.4 * torch.randn(600, 64, generator=generator), dim=1)
    ranks = compute_ranks(images, texts, owner).text_to_image
    hits = make_index(images).search(texts, 200)
    own = [
        next(hit.rank for hit in of_one if hit.item.id == f"i{k}")
        for of_one, k in zip(hits, owner.tolist(), strict=True)
    ]
    np.testing.assert_array_equal(own, ranks)


def test_candidates_cover_what_rounding_could_hide():
    """Scores that a float32 product cannot tell apart are ordered as float64 has them."""
    generator = torch.Generator().manual_seed(2)
    base = F.normalize(torch.randn(1, 512, generator=generator), dim=1)
    vectors = base + 1e-8 * torch.randn(300, 512, generator=generator)
    queries = F.normalize(base + 0.01 * torch.randn(20, 512, generator=generator), dim=1)
    products = queries @ vectors.T
    ids = [f"i{k}" for k in range(300)]
    expected = brute_force(vectors, ids, queries, 5)
    order = torch.sort(products, dim=1, descending=True, stable=True).indices[:, :5].tolist()
    by_product = [[ids[k] for k in of_one] for of_one in order]
    assert by_product != [[id for id, _, _ in hits] for hits in expected], "the case shows nothing"
    assert found(make_index(vectors).search(queries, 5)) == expected


def test_sets_are_kept_beside_their_vectors():
    embeddings = torch.randn(6, 4, 3)
    vectors = embeddings.mean(1)
    made = LocalIndex("text", "model")
    items = [Item(str(k), caption=f"caption {k}", thumbnail=b"jpeg" * k or None) for k in range(6)]
    made.add(items[:4], embeddings[:4], vectors[:4])
    made.add(items[4:], embeddings[4:], vectors[4:])
    assert torch.equal(made.embeddings_of(["5", "0"]), embeddings[[5, 0]])
    (hits,) = made.search(vectors[5:], 6)
    assert sorted((hit.item for hit in hits), key=lambda item: item.id) == items
    assert torch.equal(made.embeddings_of(["5", "0"]), embeddings[[5, 0]]), "also after the parts were joined"


def test_much_deleted_is_dropped():
    vectors = torch.eye(8)
    made = make_index(vectors)
    made.delete([f"i{k}" for k in range(3)])
    assert len(made._gallery.dead) == 5, "deleted vectors are gone"
    assert found(made.search(vectors[4:5], 1)) == [[("i4", 1.0, 1)]]
    made.delete([f"i{k}" for k in range(3, 8)])
    with pytest.raises(ValueError, match="the index is empty"):
        made.search(vectors[:1], 1)


NAN = torch.full((1, 4), torch.nan)
MISTAKES = {
    "an id that is there": (lambda made: made.add([Item("i1")], torch.ones(1, 4)), r"'i1' is already in the index"),
    "an id twice": (lambda made: made.add([Item("x"), Item("x")], torch.ones(2, 4)), r"'x' is given more than once"),
    "an empty id": (lambda made: made.add([Item("")], torch.ones(1, 4)), "non-empty text"),
    "an id that is no text": (lambda made: made.add([Item(7)], torch.ones(1, 4)), "id 7"),
    "another dimension": (lambda made: made.add([Item("x")], torch.ones(1, 5)), r"vectors \(5,\).*vectors \(4,\)"),
    "a set for an index of vectors": (
        lambda made: made.add([Item("x")], torch.ones(1, 2, 4), torch.ones(1, 4)),
        r"embeddings \(2, 4\)",
    ),
    "a set without vectors": (lambda made: made.add([Item("x")], torch.ones(1, 2, 4)), "also give vectors"),
    "whole numbers": (lambda made: made.add([Item("x")], torch.ones(1, 4, dtype=torch.int64)), "floating numbers"),
    "too few vectors": (lambda made: made.add(make_items(2, 90), torch.ones(1, 4)), "2 items, but 1 vectors"),
    "not a number": (lambda made: made.add([Item("x")], NAN), "'x', have values that are not finite"),
    "deleting what is not there": (lambda made: made.delete(["i1", "x", "y"]), r"2 ids \('x', 'y'\) are not in"),
    "asking for what is not there": (lambda made: made.embeddings_of(["x"]), "'x' is not in the index"),
    "asking for nothing": (lambda made: made.embeddings_of([]), "no ids given"),
    "a query of another dimension": (lambda made: made.search(torch.ones(1, 5), 1), r"\[Q, 4\]"),
    "a query that is no batch": (lambda made: made.search(torch.ones(4), 1), r"\[Q, 4\]"),
    "a query that is not a number": (lambda made: made.search(NAN, 1), "not finite"),
    "top_k of nothing": (lambda made: made.search(torch.ones(1, 4), 0), "top_k is 0"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told_and_change_nothing(name):
    made = make_index(torch.eye(4))
    before = found(made.search(torch.eye(4), 4))
    do, message = MISTAKES[name]
    with pytest.raises(ValueError, match=message):
        do(made)
    assert found(made.search(torch.eye(4), 4)) == before
    assert [item.id for item in made.items()] == ["i0", "i1", "i2", "i3"]


def test_values_beyond_float16_are_refused():
    with pytest.raises(ValueError, match="not finite in float16"):
        make_index(torch.full((1, 4), 1e6), dtype="float16")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modality": "audio"}, "modality is 'audio'; expected image or text"),
        ({"kind": "flat"}, "kind is 'flat'; expected auto, exact, hnsw, ivf-pq"),
        ({"dtype": "int8"}, "dtype is 'int8'; expected float32 or float16"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        LocalIndex(**{"modality": "image", "model_sha256": "model", **options})


def test_no_queries_have_no_answers():
    assert make_index(torch.eye(4)).search(torch.empty(0, 4), 3) == []


def test_an_empty_index_says_so():
    with pytest.raises(ValueError, match="the index is empty"):
        LocalIndex("image", "model").search(torch.ones(1, 4), 1)
    made = LocalIndex("image", "model")
    made.add([], torch.empty(0, 4))
    assert (len(made), list(made.items()), "x" in made) == (0, [], False)


def test_exact_search_needs_neither_faiss_nor_qdrant():
    code = (
        "import sys, torch\n"
        "sys.modules['faiss'] = sys.modules['qdrant_client'] = None\n"
        "from clip_itm.retrieval.index import LocalIndex\n"
        "from clip_itm.retrieval.items import Item\n"
        "index = LocalIndex('image', 'model')\n"
        "index.add([Item('a')], torch.ones(1, 2))\n"
        "assert index.search(torch.ones(1, 2), 1)[0][0].score == 2\n"
        "assert not {'transformers', 'open_clip'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
