"""Ranks against a brute-force twin and the golden arrays."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_itm.evaluation import ranking
from clip_itm.evaluation.ranking import Ranks, compute_ranks
from support.paths import GOLDEN


def ranks_of_matrix(scores, caption_image, block_size=None) -> Ranks:
    """Ranks of a given score matrix [Ni, Nt]: the "embeddings" are row and column numbers."""
    scores = torch.as_tensor(scores)
    rows, columns = torch.arange(scores.shape[0]), torch.arange(scores.shape[1])
    return compute_ranks(rows, columns, caption_image, lambda i, t: scores[i][:, t], block_size)


def brute_force(scores: np.ndarray, caption_image: np.ndarray) -> dict[str, list[int]]:
    """One query at a time, by sorting (worst place among equals) and by counting (best place among equals)."""
    twin = {name: [] for name in ("i2t", "i2t_worst", "t2i", "t2i_worst", "query")}
    for photo in range(len(scores)):
        own = [c for c in range(len(caption_image)) if caption_image[c] == photo]
        if not own:
            continue
        best = max(scores[photo][c] for c in own)
        rivals = [scores[photo][c] for c in range(len(caption_image)) if caption_image[c] != photo]
        twin["query"].append(photo)
        twin["i2t"].append(1 + sum(r > best for r in rivals))
        # Sorted descending, equals of the rivals first: where the first own caption stands.
        order = sorted([(-r, 0) for r in rivals] + [(-best, 1)])
        twin["i2t_worst"].append(1 + order.index((-best, 1)))
    for caption, photo in enumerate(caption_image):
        column = scores[:, caption]
        rivals = np.delete(column, photo)
        twin["t2i"].append(1 + sum(r > column[photo] for r in rivals))
        order = sorted([(-r, 0) for r in rivals] + [(-column[photo], 1)])
        twin["t2i_worst"].append(1 + order.index((-column[photo], 1)))
    return twin


def assert_same(ranks: Ranks, twin: dict[str, list[int]]) -> None:
    assert ranks.image_to_text.tolist() == twin["i2t"]
    assert ranks.image_to_text_pessimistic.tolist() == twin["i2t_worst"]
    assert ranks.text_to_image.tolist() == twin["t2i"]
    assert ranks.text_to_image_pessimistic.tolist() == twin["t2i_worst"]
    assert ranks.query_image.tolist() == twin["query"]
    assert all(getattr(ranks, name).dtype == np.int64 for name in ("image_to_text", "text_to_image", "query_image"))


@st.composite
def embeddings(draw):
    """Small whole numbers: scores are exact in any block shape, and ties and duplicates abound."""
    num_images, num_texts, width = draw(st.integers(1, 9)), draw(st.integers(1, 16)), draw(st.integers(1, 3))
    numbers = st.integers(-2, 2)
    images = draw(st.lists(st.lists(numbers, min_size=width, max_size=width), min_size=num_images, max_size=num_images))
    texts = draw(st.lists(st.lists(numbers, min_size=width, max_size=width), min_size=num_texts, max_size=num_texts))
    owner = draw(st.lists(st.integers(0, num_images - 1), min_size=num_texts, max_size=num_texts))
    return np.array(images), np.array(texts), np.array(owner)


@settings(max_examples=200, deadline=None)
@given(embeddings(), st.one_of(st.none(), st.integers(1, 20)), st.sampled_from(["float16", "bfloat16", "float32"]))
def test_ranks_equal_brute_force(case, block_size, dtype):
    """Ties, duplicated rows, photos with none or many captions, captions in any order, every size of block."""
    images, texts, owner = case
    ranks = compute_ranks(
        torch.tensor(images, dtype=getattr(torch, dtype)),
        torch.tensor(texts, dtype=getattr(torch, dtype)),
        owner,
        block_size=block_size,
    )
    assert_same(ranks, brute_force(images @ texts.T, owner))
    assert ranks.caption_image.tolist() == owner.tolist()


@settings(max_examples=50, deadline=None)
@given(embeddings(), st.randoms(use_true_random=False))
def test_order_of_photos_and_captions_does_not_matter(case, random):
    images, texts, owner = case
    photos, captions = list(range(len(images))), list(range(len(texts)))
    random.shuffle(photos)
    random.shuffle(captions)
    place = np.argsort(photos)  # photo p stands at place[p] after the shuffle
    plain = compute_ranks(torch.tensor(images).float(), torch.tensor(texts).float(), owner)
    moved = compute_ranks(
        torch.tensor(images[photos]).float(),
        torch.tensor(texts[captions]).float(),
        place[owner[captions]],
        block_size=3,
    )
    assert moved.text_to_image.tolist() == plain.text_to_image[captions].tolist()
    by_image = dict(zip(plain.query_image.tolist(), plain.image_to_text.tolist(), strict=True))
    assert moved.image_to_text.tolist() == [by_image[photos[q]] for q in moved.query_image]


def test_positive_scale_does_not_matter():
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(40, 8, generator=generator), torch.randn(90, 8, generator=generator)
    owner = torch.randint(40, (90,), generator=generator)
    plain = compute_ranks(images, texts, owner)
    scaled = compute_ranks(images, texts, owner, lambda i, t: 64 * (i @ t.T))  # a power of two: exact
    for name in ("image_to_text", "text_to_image"):
        assert np.array_equal(getattr(plain, name), getattr(scaled, name))


def test_large_blocks_are_cut_and_agree(monkeypatch):
    """Several default blocks in both directions, a rest in each."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(-3, 4, (301, 5), generator=generator).float()
    texts = torch.randint(-3, 4, (733, 5), generator=generator).float()
    owner = torch.randint(301, (733,), generator=generator)
    whole = compute_ranks(images, texts, owner)
    monkeypatch.setattr(ranking, "BLOCK_BYTES", 4 * 733 * 47)
    cut = compute_ranks(images, texts, owner)
    assert_same(cut, brute_force((images @ texts.T).numpy(), owner.numpy()))
    assert np.array_equal(whole.text_to_image, cut.text_to_image)


def test_counts_beyond_what_float32_can_count():
    many = 2**24 + 1
    scores = torch.ones(1, 1).expand(1, many)
    for dim, block in ((1, scores), (0, scores.T)):
        greater, at_least = ranking.count_rivals(block, torch.zeros(1, 1), dim, torch.empty(many))
        assert greater.tolist() == at_least.tolist() == [many]


@pytest.mark.parametrize("prefix", ["five", "one"])
@pytest.mark.parametrize("block_size", [None, 7])
def test_npc_retrieval_golden(prefix, block_size):
    golden = np.load(GOLDEN / "npc_retrieval.npz")
    scores, per = golden[f"{prefix}_sim"], int(golden[f"{prefix}_num_anns"])
    ranks = ranks_of_matrix(scores, np.repeat(np.arange(len(scores)), per), block_size)
    for optimistic, pessimistic, expected in (
        (ranks.image_to_text, ranks.image_to_text_pessimistic, golden[f"{prefix}_i2t_rank"]),
        (ranks.text_to_image, ranks.text_to_image_pessimistic, golden[f"{prefix}_t2i_rank"]),
    ):
        assert np.array_equal(optimistic, expected)
        assert np.array_equal(pessimistic, expected)


@pytest.mark.parametrize("prefix", ["five", "one"])
@pytest.mark.parametrize("model", ["a", "b", "avg"])
def test_crcl_metrics_golden_ranks(prefix, model):
    """`avg` is the ensemble of two models: the mean of their score matrices."""
    golden = np.load(GOLDEN / "crcl_metrics.npz")
    both = {name: golden[f"{prefix}_sims_{name}"] for name in ("a", "b")}
    scores = (both["a"].astype(np.float64) + both["b"]) / 2 if model == "avg" else both[model]
    ranks = ranks_of_matrix(scores, np.repeat(np.arange(len(scores)), int(golden[f"{prefix}_per"])), 11)
    assert np.array_equal(ranks.image_to_text - 1, golden[f"{prefix}_{model}_rank_i2t"])
    assert np.array_equal(ranks.text_to_image - 1, golden[f"{prefix}_{model}_rank_t2i"])


def test_own_score_comes_from_the_block_of_its_rivals():
    """Identical photos tie in every block, even where another block would round the same product differently."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, 64, generator=generator).repeat(100, 1)
    texts = torch.randn(300, 64, generator=generator)
    for block_size in (1, 7, 33, None):
        ranks = compute_ranks(images, texts, torch.arange(300) // 3, block_size=block_size)
        assert (ranks.text_to_image == 1).all()
        assert (ranks.text_to_image_pessimistic == 100).all()


def test_half_precision_scores_tie_and_it_shows():
    generator = torch.Generator().manual_seed(0)
    texts = torch.nn.functional.normalize(torch.randn(400, 16, generator=generator), dim=1)
    images = torch.nn.functional.normalize(texts + 0.3 * torch.randn(400, 16, generator=generator), dim=1).half()
    owner = torch.arange(400)
    half = compute_ranks(images, texts.half(), owner, lambda i, t: i @ t.T)
    full = compute_ranks(images, texts.half(), owner)
    assert (half.text_to_image < half.text_to_image_pessimistic).any()
    assert np.array_equal(full.text_to_image, full.text_to_image_pessimistic)


def test_precision_settings_of_the_training_run_do_not_reach_the_scores():
    seen = []

    def similarity(images, texts):
        seen.append((torch.is_autocast_enabled("cpu"), torch.backends.mkldnn.matmul.fp32_precision))
        return images @ texts.T

    before = torch.backends.mkldnn.matmul.fp32_precision
    try:
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
        with torch.autocast("cpu", dtype=torch.bfloat16):
            ranks = compute_ranks(torch.eye(4), torch.eye(4), torch.arange(4), similarity)
            assert torch.is_autocast_enabled("cpu")
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before
    assert seen == [(False, "ieee")]
    assert ranks.image_to_text.tolist() == [1, 1, 1, 1]


def test_one_block_is_scored_once():
    calls = []

    def similarity(images, texts):
        calls.append((len(images), len(texts)))
        return images @ texts.T

    compute_ranks(torch.eye(6), torch.eye(6), torch.arange(6), similarity)
    assert calls == [(6, 6)]
    calls.clear()
    compute_ranks(torch.eye(6), torch.eye(6), torch.arange(6), similarity, block_size=4)
    assert calls == [(4, 6), (2, 6), (6, 4), (6, 2)]


def unit_vectors(count: int, width: int, seed: int) -> torch.Tensor:
    return torch.nn.functional.normalize(
        torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=1
    )


def products_of(monkeypatch, images, texts, owner) -> tuple[Ranks, int]:
    """Ranks in blocks of 16 images, and how many dot products they took."""
    made, product = [], ranking.DotProduct.__call__

    def counting(self, left, right):
        made.append(len(left) * len(right))
        return product(self, left, right)

    monkeypatch.setattr(ranking.DotProduct, "__call__", counting)
    return compute_ranks(images, texts, owner, block_size=16), sum(made)


def test_dot_products_of_both_directions_are_made_once(monkeypatch):
    images, texts, owner = unit_vectors(64, 32, 0), unit_vectors(320, 32, 1), np.arange(320) // 5
    ranks, made = products_of(monkeypatch, images, texts, owner)
    assert 64 * 320 <= made < 1.1 * 64 * 320
    assert_same(ranks, brute_force((images.double() @ texts.double().T).numpy(), owner))


class Declared(torch.nn.Module):
    is_dot_product = True

    def forward(self, images, texts):
        raise AssertionError("what says that it is a dot product is one")


def test_a_similarity_that_is_a_dot_product_is_taken_for_one():
    images, texts, owner = unit_vectors(20, 8, 2), unit_vectors(40, 8, 3), np.arange(40) // 2
    plain, declared = compute_ranks(images, texts, owner), compute_ranks(images, texts, owner, Declared())
    assert np.array_equal(plain.text_to_image, declared.text_to_image)


@pytest.mark.parametrize("distance", [0.0, 1e-8, 1e-7, 1e-6, 1e-5])
def test_rivals_nearer_than_rounding_are_compared_in_one_block(monkeypatch, distance):
    """Images that are nearly the same: a rank may be what rounding allows, and equal images tie."""
    images, texts, owner = unit_vectors(64, 256, 4), unit_vectors(320, 256, 5), np.arange(320) // 5
    images[1::2] = images[::2] + distance * unit_vectors(32, 256, 6)
    ranks, made = products_of(monkeypatch, images, texts, owner)
    exact = images.double() @ texts.double().T
    own = exact[owner, np.arange(320)]
    rounding = 2 * 256 * torch.finfo(torch.float32).eps
    assert (ranks.text_to_image >= 1 + (exact > own + rounding).sum(0).numpy()).all()
    assert (ranks.text_to_image_pessimistic <= (exact >= own - rounding).sum(0).numpy()).all()
    assert made <= 2 * 64 * 320
    if distance == 0:
        assert (ranks.text_to_image_pessimistic - ranks.text_to_image == 1).all()


def test_set_embeddings_and_gradients():
    """Any first dimension will do, and embeddings that require a gradient are no obstacle."""
    images, texts = torch.randn(5, 3, 4, requires_grad=True), torch.randn(10, 3, 4)

    def best_of_set(i, t):
        return torch.einsum("ikd,tld->itkl", i, t).amax((2, 3))

    owner = np.arange(10) // 2
    ranks = compute_ranks(images, texts, owner, best_of_set, block_size=2)
    assert_same(ranks, brute_force(best_of_set(images, texts).detach().numpy(), owner))


def test_given_score_matrix_is_not_touched():
    scores = torch.randn(6, 6)
    before = scores.clone()
    compute_ranks(
        torch.arange(6), torch.arange(6), torch.arange(6), lambda i, t: scores[i[0] : i[-1] + 1, t[0] : t[-1] + 1]
    )
    assert torch.equal(scores, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(0, 4)}, "nothing to rank: 0 photos and 6 captions"),
        ({"texts": torch.zeros(0, 4), "caption_image": torch.zeros(0, dtype=torch.int64)}, "3 photos and 0 captions"),
        ({"caption_image": torch.arange(5)}, r"shape \(5,\).*each of the 6 captions"),
        ({"caption_image": torch.zeros(6)}, "torch.float32.*photo number"),
        ({"caption_image": torch.tensor([0, 1, 2, 3, 0, 4])}, r"caption_image\[3\] is 3.*0 to 2 \(2 captions"),
        ({"caption_image": torch.tensor([0, 1, 2, -1, 0, 1])}, r"caption_image\[3\] is -1"),
        ({"texts": torch.ones(6, 5)}, r"\(3, 4\) and \(6, 5\)"),
        ({"images": torch.ones(3, 2, 4)}, "pass `similarity`"),
        ({"block_size": 0}, "block_size is 0"),
        ({"similarity": lambda i, t: t @ i.T}, r"\(6, 3\) for 3 photos and 6 captions"),
        ({"similarity": lambda i, t: (i @ t.T).long()}, "floating scores"),
        ({"images": torch.full((3, 4), torch.nan)}, "18 of 18 similarities.*NaN"),
        ({"texts": torch.tensor([[1.0, 0, 0, 0]] * 5 + [[torch.nan] * 4])}, "3 of 18 similarities"),
    ],
)
def test_bad_input_is_named(change, message):
    good = {"images": torch.ones(3, 4), "texts": torch.ones(6, 4), "caption_image": torch.arange(6) // 2}
    with pytest.raises(ValueError, match=message):
        compute_ranks(**(good | change))


def test_infinite_scores_are_scores():
    scores = np.array([[np.inf, -np.inf], [0.0, np.inf]], dtype=np.float32)
    ranks = ranks_of_matrix(scores, np.array([0, 1]))
    assert ranks.image_to_text.tolist() == ranks.text_to_image.tolist() == [1, 1]
