"""Losses of DivE against golden numbers and loops, and in the corners: no negatives, distance 0, single elements."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from clip_itm.methods.dive.losses import (
    circular_variance,
    discrepancy,
    diversity,
    laplacian_kernel,
    orthogonality,
    triplet_losses,
)
from clip_itm.methods.dive.set_similarity import chamfer, largest, set_scores, smooth_chamfer

EXACT = {"rtol": 1e-9, "atol": 1e-11}
SIMILARITIES = {"sc": partial(smooth_chamfer, alpha=16), "chamfer": chamfer, "max": largest}
VARIANTS = {
    "hardest_m02": ("hardest", 0.2),
    "hardest_m005": ("hardest", 0.05),
    "allneg_m02": ("all", 0.2),
    "clamped_m02": ("clamped", 0.2),
}
OWNER = torch.arange(30) // 5  # captions 5 i .. 5 i + 4 belong to photo i


@pytest.fixture
def leaves(golden) -> dict[str, Tensor]:
    arrays = golden("dive_losses")
    names = ("img_emb", "txt_emb", "img_slots", "txt_slots")
    return {name: torch.tensor(arrays[name]).double().requires_grad_() for name in names}


def both_directions(images: Tensor, texts: Tensor, reduction, negatives: str, margin: float) -> tuple[Tensor, Tensor]:
    """The golden batch as the toolkit has it: a pair per caption, photos repeated."""
    scores = set_scores(images[OWNER], texts, reduction)
    same_image, targets = OWNER[:, None] == OWNER[None], torch.arange(30)
    return tuple(triplet_losses(each, targets, same_image, margin, negatives).mean() for each in (scores, scores.T))


def assert_gradients(leaves: dict[str, Tensor], arrays: dict, name: str, tensors: dict[str, str]) -> None:
    for leaf, suffix in tensors.items():
        np.testing.assert_allclose(leaves[leaf].grad, arrays[f"{name}_{suffix}"], **EXACT, err_msg=leaf)
        assert np.abs(arrays[f"{name}_{suffix}"]).max() > 1e-5


@pytest.mark.parametrize("variant", [*VARIANTS])
@pytest.mark.parametrize("similarity", [*SIMILARITIES])
def test_golden_triplets(golden, leaves, similarity, variant):
    arrays, name = golden("dive_losses"), f"{similarity}_{variant}"
    i2t, t2i = both_directions(leaves["img_emb"], leaves["txt_emb"], SIMILARITIES[similarity], *VARIANTS[variant])
    np.testing.assert_allclose(i2t.detach(), arrays[f"{name}_i2t"], **EXACT)
    np.testing.assert_allclose(t2i.detach(), arrays[f"{name}_t2i"], **EXACT)
    (i2t + t2i).backward()
    if f"{name}_grad_img" in arrays:
        assert_gradients(leaves, arrays, name, {"img_emb": "grad_img", "txt_emb": "grad_txt"})
    else:
        assert similarity != "sc" or variant in ("hardest_m005", "allneg_m02")


def test_golden_discrepancy(golden, leaves):
    arrays = golden("dive_losses")
    images, texts = leaves["img_emb"], leaves["txt_emb"]
    found = discrepancy(images, texts)
    found.backward()
    np.testing.assert_allclose(found.detach(), arrays["mmd_g05"], **EXACT)
    assert_gradients(leaves, arrays, "mmd_g05", {"img_emb": "grad_img", "txt_emb": "grad_txt"})
    np.testing.assert_allclose(discrepancy(images, texts, gamma=1 / 16).detach(), arrays["mmd_ginvD"], **EXACT)
    torch.testing.assert_close(discrepancy(images[OWNER], texts), found, rtol=1e-9, atol=0)  # a pair per caption


@pytest.mark.parametrize(("penalty", "name"), [(diversity, "div_slots"), (orthogonality, "pvse_div")])
def test_golden_penalties(golden, leaves, penalty, name):
    arrays = golden("dive_losses")
    images, texts = penalty(leaves["img_slots"]), penalty(leaves["txt_slots"])
    (images + texts).backward()
    np.testing.assert_allclose(images.detach(), arrays[f"{name}_img"], **EXACT)
    np.testing.assert_allclose(texts.detach(), arrays[f"{name}_txt"], **EXACT)
    stored = {"img_slots": "grad_img", "txt_slots": "grad_txt"} if penalty is diversity else {"img_slots": "grad_img"}
    assert_gradients(leaves, arrays, name, stored)
    torch.testing.assert_close(penalty(leaves["img_slots"][OWNER]), images, rtol=1e-9, atol=0)


def test_golden_diversity_of_embeddings(golden, leaves):
    """They are of unit length up to float32 and not normalised again."""
    arrays = golden("dive_losses")
    np.testing.assert_allclose(diversity(leaves["img_emb"]).detach(), arrays["div_emb_img"], rtol=1e-6)
    np.testing.assert_allclose(diversity(leaves["txt_emb"]).detach(), arrays["div_emb_txt"], rtol=1e-6)


def test_golden_total(golden, leaves):
    arrays = golden("dive_losses")
    images, texts = leaves["img_emb"], leaves["txt_emb"]
    i2t, t2i = both_directions(images, texts, SIMILARITIES["sc"], "hardest", 0.2)
    apart = diversity(leaves["img_slots"]) + diversity(leaves["txt_slots"])
    total = i2t + t2i + 0.01 * discrepancy(images, texts) + 0.01 * apart
    total.backward()
    np.testing.assert_allclose(total.detach(), arrays["total"], **EXACT)
    assert_gradients(leaves, arrays, "total_grad", {name: name for name in leaves})


@pytest.mark.parametrize("negatives", ["hardest", "all", "clamped"])
def test_triplets_equal_a_loop(negatives):
    """Photos with one, two and three captions, in any order."""
    image_ids = torch.tensor([3, 0, 1, 3, 2, 0, 3])
    scores = torch.rand(7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5
    found = triplet_losses(scores, torch.arange(7), image_ids[:, None] == image_ids, 0.2, negatives)
    rows = [
        [max(0.0, float(0.2 - scores[k, k] + scores[k, j])) for j in range(7) if image_ids[j] != image_ids[k]]
        for k in range(7)
    ]
    if negatives == "hardest":
        np.testing.assert_allclose(found, [max(row) for row in rows], rtol=1e-12)
        return
    hinges = [min(hinge, 0.2) if negatives == "clamped" else hinge for row in rows for hinge in row]
    counted = [hinge for hinge in hinges if hinge > 0] if negatives == "clamped" else hinges
    assert 0 < len(counted) <= len(hinges)
    np.testing.assert_allclose(found.mean(), sum(hinges) / len(counted), rtol=1e-12)


@pytest.mark.parametrize("negatives", ["hardest", "all", "clamped"])
def test_a_batch_without_negatives_costs_nothing(negatives):
    scores = torch.rand(3, 3, requires_grad=True)
    losses = triplet_losses(scores, torch.arange(3), torch.ones(3, 3, dtype=torch.bool), 0.2, negatives)
    losses.sum().backward()
    assert (losses == 0).all()
    assert (scores.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_discrepancy_at_distance_zero(dtype):
    """Equal and nearly equal elements, within a set and across the modalities: no NaN, no huge gradient."""
    rows = torch.nn.functional.normalize(torch.randn(4, 1, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    images = rows.to(dtype).expand(-1, 3, -1).clone().requires_grad_()
    texts = images.detach().clone()
    texts[0, 0, 0] += 1e-4
    found = discrepancy(images, texts.requires_grad_())
    found.backward()
    assert found.abs() < 1e-4
    for sets in (images, texts):
        assert sets.grad.isfinite().all()
        assert sets.grad.abs().max() < 1
    assert (laplacian_kernel(images[:, 0], images[:, 0]).diagonal() == 1).all()


def test_kernels_equal_distances():
    a, b = torch.randn(2, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(laplacian_kernel(a, b), (-0.5 * torch.cdist(a, b)).exp())
    torch.testing.assert_close(laplacian_kernel(a, b, 2, squared=True), (-2 * torch.cdist(a, b) ** 2).exp())


def test_single_elements():
    slots = torch.randn(3, 1, 4, requires_grad=True)
    (diversity(slots) + orthogonality(slots)).backward()
    assert diversity(slots) == orthogonality(slots) == 0
    assert (slots.grad == 0).all()


def test_circular_variance():
    """0 for a collapsed set, 1 for opposite elements."""
    first = torch.nn.functional.normalize(torch.randn(3, 1, 5), dim=-1)
    torch.testing.assert_close(circular_variance(first.expand(-1, 4, -1)), torch.tensor(0.0), rtol=0, atol=1e-6)
    torch.testing.assert_close(circular_variance(torch.cat([first, -first], dim=1)), torch.tensor(1.0))
