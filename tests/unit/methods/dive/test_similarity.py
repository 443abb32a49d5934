"""Set similarities of DivE against golden numbers, their limits, blocks against one piece, and evaluation."""

import math
import threading
import time
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from clip_itm.evaluation.ranking import compute_ranks
from clip_itm.evaluation.recall import recall_metrics
from clip_itm.methods.dive import set_similarity
from clip_itm.methods.dive.configuration import SetSimilaritySection, SmoothChamferSection
from clip_itm.methods.dive.set_similarity import (
    SetSimilarity,
    chamfer,
    element_cosines,
    largest,
    match_probability,
    set_scores,
    smooth_chamfer,
)

TOLERANCE = {torch.float64: {"rtol": 1e-9, "atol": 1e-9}, torch.float32: {"rtol": 2e-5, "atol": 2e-5}}
REDUCTIONS = {
    "smooth_chamfer16": partial(smooth_chamfer, alpha=16),
    "chamfer": chamfer,
    "max": largest,
    "mp": partial(match_probability, slope=1, shift=0),
}


def unit_sets(items: int, elements: int, width: int, seed: int, dtype=torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return nn.functional.normalize(torch.randn(items, elements, width, generator=generator, dtype=dtype), dim=-1)


def similarity_of(kind: str) -> SetSimilarity:
    section = SmoothChamferSection() if kind == "smooth_chamfer" else SetSimilaritySection(kind=kind)
    return SetSimilarity(section, nn.Identity(), nn.Identity())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", ["a", "b", "single"])
def test_golden(golden, case, dtype):
    arrays, tolerance = golden("dive_similarity"), TOLERANCE[dtype]
    images, texts, weights = (torch.tensor(arrays[f"{case}_{name}"], dtype=dtype) for name in ("img", "txt", "cot"))
    for alpha, expected in zip(arrays["alphas"].tolist(), arrays[f"{case}_smooth_chamfer"], strict=True):
        found = set_scores(images, texts, partial(smooth_chamfer, alpha=alpha))
        np.testing.assert_allclose(found, expected, **tolerance, err_msg=f"alpha {alpha}")
    for name, reduction in REDUCTIONS.items():
        sets = images.clone().requires_grad_(), texts.clone().requires_grad_()
        scores = set_scores(*sets, reduction)
        (weights * scores).sum().backward()
        assert scores.dtype == dtype
        if name == "smooth_chamfer16":
            np.testing.assert_allclose(2 * scores.detach(), arrays[f"{case}_smooth_chamfer_denom1"], **tolerance)
        else:
            np.testing.assert_allclose(scores.detach(), arrays[f"{case}_{name}"], **tolerance, err_msg=name)
        np.testing.assert_allclose(sets[0].grad, arrays[f"{case}_{name}_grad_img"], **tolerance, err_msg=name)
        np.testing.assert_allclose(sets[1].grad, arrays[f"{case}_{name}_grad_txt"], **tolerance, err_msg=name)
    found = set_scores(images, texts, partial(match_probability, slope=7.5, shift=-2))
    np.testing.assert_allclose(found, arrays[f"{case}_mp_affine"], **tolerance)
    # the Euclidean form is smooth-Chamfer of negated distances
    distances = torch.cdist(*(sets.transpose(0, 1).flatten(0, 1) for sets in (images, texts)))
    found = -smooth_chamfer(-distances.view_as(element_cosines(images, texts)), alpha=2)
    np.testing.assert_allclose(found, arrays[f"{case}_smooth_chamfer_dist_l2"], **tolerance)


def test_golden_collapsed_sets(golden):
    arrays = golden("dive_similarity")
    images, texts = (torch.tensor(arrays[f"collapsed_{name}"]).double() for name in ("img", "txt"))
    found = set_scores(images, texts, REDUCTIONS["smooth_chamfer16"])
    np.testing.assert_allclose(found, arrays["collapsed_smooth_chamfer16"], rtol=1e-9)
    np.testing.assert_allclose(found, images[:, 0] @ texts[:, 0].T + math.log(4) / 16, rtol=1e-6)


@pytest.mark.parametrize("alpha", [1, 16, 39.9, 41, 200])
def test_bounds_and_symmetry(alpha):
    """Chamfer <= SC <= Chamfer + (ln K + ln L) / (2 alpha), and Jensen's bound (docs/papers/dive.md 5.6)."""
    images, texts = unit_sets(5, 3, 6, 0), unit_sets(7, 4, 6, 1)
    scores = set_scores(images, texts, partial(smooth_chamfer, alpha=alpha))
    offset = (math.log(3) + math.log(4)) / (2 * alpha)
    lower = set_scores(images, texts, chamfer)
    assert (scores >= lower - 1e-12).all()
    assert (scores <= lower + offset + 1e-12).all()
    assert (scores >= images.mean(1) @ texts.mean(1).T + offset - 1e-12).all()
    mirrored = set_scores(texts, images, partial(smooth_chamfer, alpha=alpha))
    torch.testing.assert_close(mirrored.T, scores)
    shuffled = set_scores(images[:, [2, 0, 1]], texts[:, [3, 1, 0, 2]], partial(smooth_chamfer, alpha=alpha))
    torch.testing.assert_close(shuffled, scores)


def test_limits_of_alpha():
    images, texts = unit_sets(5, 3, 6, 0), unit_sets(7, 4, 6, 1)
    large = set_scores(images, texts, partial(smooth_chamfer, alpha=1e5))
    torch.testing.assert_close(large, set_scores(images, texts, chamfer), rtol=0, atol=1e-4)
    small = set_scores(images, texts, partial(smooth_chamfer, alpha=1e-4)) - (math.log(3) + math.log(4)) / 2e-4
    torch.testing.assert_close(small, element_cosines(images, texts).mean((0, 2)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("alpha", [40, 41])
def test_opposite_vectors_in_float32(alpha):
    """The smallest exponential, at cosine -1, is no zero, with the shared exponential and with logsumexp."""
    images = unit_sets(4, 1, 5, 0, torch.float32).expand(-1, 4, -1).clone().requires_grad_()
    scores = set_scores(images, -images.detach(), partial(smooth_chamfer, alpha=alpha))
    scores.sum().backward()
    torch.testing.assert_close(scores.diagonal(), torch.full((4,), -1 + math.log(4) / alpha), rtol=0, atol=1e-5)
    assert images.grad.isfinite().all()
    assert images.grad.abs().max() > 0.1


@pytest.mark.parametrize("name", [*REDUCTIONS])
def test_blocks_equal_one_piece(monkeypatch, name):
    """Values and gradients, of blocks that do not divide the sets, with parameters of the reduction."""
    images, texts = unit_sets(23, 3, 6, 0), unit_sets(29, 2, 6, 1)
    weights = unit_sets(23, 29, 1, 2)[..., 0]
    found = {}
    for block_bytes in (2**20, 24 * 35):
        monkeypatch.setattr(set_similarity, "BLOCK_BYTES", block_bytes)
        leaves = [leaf.clone().requires_grad_() for leaf in (images, texts, torch.tensor([1.5, -0.2]).double())]
        reduction = REDUCTIONS[name]
        if name == "mp":
            reduction = partial(match_probability, slope=leaves[2][0], shift=leaves[2][1])
        scores = set_scores(*leaves[:2], reduction)
        (weights * scores).sum().backward()
        with torch.no_grad():
            torch.testing.assert_close(set_scores(images, texts, reduction), scores.detach(), rtol=1e-12, atol=1e-12)
        found[block_bytes] = [scores.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]
    one, blocks = found.values()
    assert len(one) == len(blocks) == (4 if name == "mp" else 3)
    for expected, value in zip(one, blocks, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


def test_learned_match_probability():
    """Slope and shift are parameters and train (in the published code they never did), in blocks, too."""
    similarity = similarity_of("match_probability")
    similarity(unit_sets(3, 2, 4, 0), unit_sets(4, 2, 4, 1)).sum().backward()
    assert {name for name, _ in similarity.named_parameters()} == {"slope", "shift"}
    assert all(parameter.grad.abs() > 0.01 for parameter in similarity.parameters())


@pytest.mark.parametrize("kind", ["smooth_chamfer", "chamfer", "max", "match_probability"])
def test_scores_are_float32_under_autocast(kind):
    similarity = similarity_of(kind)
    images, texts = unit_sets(5, 3, 64, 0, torch.float32), unit_sets(7, 4, 64, 1, torch.float32)
    with torch.no_grad():
        expected = similarity(images, texts)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(similarity(images, texts), expected, rtol=0, atol=0)
        stored = similarity(images.half(), texts.half())
    assert expected.dtype == stored.dtype == torch.float32
    torch.testing.assert_close(stored, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("name", "kind"), [("sc16", "smooth_chamfer"), ("chamfer", "chamfer"), ("max", "max")])
@pytest.mark.parametrize("block_size", [None, 7])
def test_golden_evaluation(golden, name, kind, block_size):
    arrays = golden("dive_eval")
    images, texts = torch.tensor(arrays["img"]), torch.tensor(arrays["cap"])
    similarity, owner = similarity_of(kind), torch.arange(300) // 5
    scores = similarity(images, texts)
    np.testing.assert_allclose(scores[:4], arrays[f"{name}_sim_first_rows"], atol=2e-5)
    np.testing.assert_array_equal(scores.argmax(1), arrays[f"{name}_i2t_top1"])
    np.testing.assert_array_equal(scores.argmax(0), arrays[f"{name}_t2i_top1"])
    ranks = compute_ranks(images, texts, owner, similarity, block_size)
    np.testing.assert_array_equal(ranks.image_to_text - 1, arrays[f"{name}_i2t_ranks"])
    np.testing.assert_array_equal(ranks.text_to_image - 1, arrays[f"{name}_t2i_ranks"])
    assert_metrics(recall_metrics(ranks), arrays, name)
    np.testing.assert_allclose(recall_metrics(ranks)["rsum"], arrays[f"{name}_rsum"])
    folds = [
        compute_ranks(images[start : start + 20], texts[5 * start : 5 * start + 100], owner[:100], similarity)
        for start in (0, 20, 40)
    ]
    rsums = []
    for fold, ranks in enumerate(folds):
        rsums.append(recall_metrics(ranks)["rsum"])
        of_fold = {f"fold_{way}": arrays[f"{name}_fold_{way}"][fold] for way in ("i2t", "t2i")}
        assert_metrics(recall_metrics(ranks), of_fold, "fold")
    np.testing.assert_allclose(np.mean(rsums), arrays[f"{name}_fold_mean_rsum"])


def test_golden_evaluation_of_single_elements(golden):
    arrays = golden("dive_eval")
    images, texts = torch.tensor(arrays["img"])[:, :1], torch.tensor(arrays["cap"])[:, :1]
    ranks = compute_ranks(images, texts, torch.arange(300) // 5, similarity_of("smooth_chamfer"))
    assert_metrics(recall_metrics(ranks), arrays, "single")


def assert_metrics(found: dict[str, float], arrays: dict, name: str) -> None:
    """Published R@1, R@5, R@10, median and mean rank of both directions."""
    for way in ("i2t", "t2i"):
        names = [f"{way}_r1", f"{way}_r5", f"{way}_r10", f"{way}_median_rank", f"{way}_mean_rank"]
        np.testing.assert_allclose([found[each] for each in names], arrays[f"{name}_{way}"], err_msg=way)


def test_means_make_a_shortlist():
    similarity = similarity_of("smooth_chamfer")
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(2, 200, 1, 32, generator=generator)
    sets = nn.functional.normalize(centres + 0.4 * torch.randn(2, 200, 4, 32, generator=generator), dim=-1)
    scores = similarity(sets[0], sets[1])
    vectors = [similarity.vectors(each) for each in sets]
    shortlist = (vectors[0] @ vectors[1].T).topk(10).indices
    assert (shortlist == scores.argmax(1, keepdim=True)).any(1).float().mean() > 0.95


def test_memory_of_a_large_evaluation():
    """1,000 x 5,000 sets: the scores and a few blocks, not the 320 MB of all cosines."""
    images, texts = unit_sets(1000, 4, 16, 0, torch.float32), unit_sets(5000, 4, 16, 1, torch.float32)
    peak, stop = [resident()], threading.Event()

    def watch() -> None:
        while not stop.is_set():
            peak[0] = max(peak[0], resident())
            time.sleep(0.001)

    similarity = similarity_of("smooth_chamfer")
    with torch.no_grad():
        similarity(images[:200], texts[:200])
        before = resident()
        watcher = threading.Thread(target=watch)
        watcher.start()
        scores = similarity(images, texts)
        stop.set()
        watcher.join()
    assert scores.shape == (1000, 5000)
    assert peak[0] - before < 20e6 + 8 * set_similarity.BLOCK_BYTES


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm", encoding="utf-8") as file:
        return int(file.read().split()[1]) * 4096
