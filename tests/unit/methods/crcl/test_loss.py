"""The loss of CRCL against golden numbers, in numeric extremes, and with candidates left out."""

import numpy as np
import pytest
import torch
from torch import Tensor

from clip_itm.methods.crcl.labels import label_filter
from clip_itm.methods.crcl.loss import (
    Matching,
    active_losses,
    complementary_losses,
    crcl_loss,
    match,
    match_both_ways,
    matching_probability,
)
from clip_itm.methods.scores import global_scores
from clip_itm.similarity.cosine import Cosine

TOLERANCE = {
    torch.float64: {"rtol": 1e-6, "atol": 1e-7},
    torch.float32: {"rtol": 2e-4, "atol": 2e-5},
}


def match_both(similarity: Tensor, temperature: float) -> tuple[Matching, Matching, Tensor]:
    """Both directions of a whole batch [B, B], pairs on the diagonal."""
    targets = torch.arange(len(similarity))
    return match(similarity / temperature, targets), match(similarity.T / temperature, targets), targets


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", "abcdefgh")
def test_golden(golden, case, dtype):
    arrays = {name[2:]: value for name, value in golden("crcl_loss").items() if name[:2] == f"{case}_"}
    tolerance = TOLERANCE[dtype]
    similarity = torch.tensor(arrays["S"], dtype=dtype, requires_grad=True)
    labels = label_filter(torch.tensor(arrays["y_stored"]), 0.1)
    np.testing.assert_array_equal(labels, arrays["y_used"])
    rows, columns, targets = match_both(similarity, float(arrays["tau"]))
    loss, active, complementary = crcl_loss(rows, columns, labels, targets, float(arrays["lam"]))
    loss.backward()
    assert loss.dtype == dtype
    np.testing.assert_allclose(rows.probabilities.detach(), arrays["p_i2t"], **tolerance)
    np.testing.assert_allclose(columns.probabilities.detach(), arrays["p_t2i"], **tolerance)
    np.testing.assert_allclose(matching_probability(rows, columns), arrays["p_pair"], **tolerance)
    np.testing.assert_allclose(active.detach(), arrays["active"], **tolerance)
    np.testing.assert_allclose(active_losses(rows, columns).mean().detach(), arrays["active_unweighted"], **tolerance)
    np.testing.assert_allclose(complementary.detach(), arrays["comp"], **tolerance)
    np.testing.assert_allclose(loss.detach(), arrays["total"], **tolerance)
    np.testing.assert_allclose(similarity.grad, arrays["grad_S"], **tolerance)
    if dtype == torch.float32:
        np.testing.assert_allclose(loss.detach(), arrays["total_f32"], **tolerance)
        np.testing.assert_allclose(similarity.grad, arrays["grad_S_f32"], **tolerance)


def test_golden_constant_exponents(golden):
    arrays = {name[2:]: value for name, value in golden("crcl_loss").items() if name[:2] == "q_"}
    assert len(arrays["values"]) == 5
    for place, exponent in enumerate(arrays["values"].tolist()):
        similarity = torch.tensor(arrays["S"], dtype=torch.float64, requires_grad=True)
        rows, columns, targets = match_both(similarity, float(arrays["tau"]))
        complementary = complementary_losses(rows, columns, exponent, targets).mean()
        loss = active_losses(rows, columns).mean() + float(arrays["lam"]) * complementary
        loss.backward()
        tolerance = TOLERANCE[torch.float64]
        np.testing.assert_allclose(complementary.detach(), arrays["comp"][place], **tolerance)
        np.testing.assert_allclose(loss.detach(), arrays["total"][place], **tolerance)
        np.testing.assert_allclose(similarity.grad, arrays["grad_S"][place], **tolerance)


def test_no_gradient_through_labels():
    """A label made from p in the same step is a constant for the gradient, in the weight and in the exponent."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    gradients = []
    for labels in (None, matching_probability(*match_both(start, 0.5)[:2])):
        similarity = start.clone().requires_grad_()
        rows, columns, targets = match_both(similarity, 0.5)
        p = matching_probability(rows, columns)
        assert not p.requires_grad
        crcl_loss(rows, columns, p if labels is None else labels, targets, 5.0)[0].backward()
        gradients.append(similarity.grad)
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_similarities_are_finite(dtype):
    """S / tau of +-1000 with labels 0, 0.5 and 1: probabilities underflow, their logarithms do not."""
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (9, 9), generator=generator) * 2 - 1
    signs[0], signs[0, 0], signs[1, 1], signs[2, 2] = 1, -1, -1, -1  # labels 0, 0.5, 1 with P_ii = 0
    similarity = (10 * signs).to(dtype).requires_grad_()
    labels = torch.tensor([0, 0.5, 1]).repeat(3)
    rows, columns, targets = match_both(similarity, 0.01)
    assert rows.probabilities.dtype == torch.float32
    assert rows.probabilities[0, 0] == 0
    assert rows.log_probability[0] < -1000
    loss, active, complementary = crcl_loss(rows, columns, labels, targets, 5.0)
    loss.backward()
    assert all(value.isfinite() for value in (loss, active, complementary))
    assert similarity.grad.isfinite().all()
    assert similarity.grad.abs().max() > 0


def test_disbelieved_underflowed_pair():
    """Label 0 and P_ii = 0 give 0 for the active term, not 0 times infinity, and no pull."""
    similarity = torch.tensor([[-10.0, 10.0], [10.0, -10.0]], requires_grad=True)
    rows, columns, targets = match_both(similarity, 0.01)
    loss, active, complementary = crcl_loss(rows, columns, torch.zeros(2), targets, 5.0)
    loss.backward()
    assert active == 0
    assert complementary == 2  # the bound: 1 in each direction
    assert (similarity.grad == 0).all()


def test_masked_columns_equal_deleted_ones():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 9, generator=generator, dtype=torch.float64).requires_grad_()
    targets = torch.tensor([0, 8, 3, 3, 5])
    mask = torch.rand(5, 9, generator=generator) < 0.4
    mask[torch.arange(5), targets] = False
    labels = torch.tensor([0, 0.3, 0.5, 0.8, 1.0], dtype=torch.float64)
    masked = match(logits, targets, mask)
    loss, *_ = crcl_loss(masked, masked, labels, targets, 5.0)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert mask.any(dim=1).all()
    assert (masked.probabilities[mask] == 0).all()
    assert (gradient[mask] == 0).all()
    losses = []
    for row, kept in enumerate(~mask):
        target = kept[: targets[row]].sum()[None]
        alone = match(logits[row : row + 1, kept], target)
        torch.testing.assert_close(alone.log_probability, masked.log_probability[row : row + 1])
        torch.testing.assert_close(alone.probabilities[0], masked.probabilities[row, kept])
        losses.append(crcl_loss(alone, alone, labels[row], target, 5.0)[0])
    torch.testing.assert_close(torch.stack(losses).mean(), loss)
    torch.testing.assert_close(torch.autograd.grad(sum(losses) / 5, logits)[0], gradient)


def unit_vectors(rows: int, seed: int) -> Tensor:
    vectors = torch.randn(rows, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(vectors, dim=-1).requires_grad_()


def scores_of(images: Tensor, captions: Tensor) -> tuple[Tensor, Tensor]:
    return global_scores(Cosine(), images, captions)


@pytest.mark.parametrize("image_ids", [None, torch.tensor([0, 1, 0, 2, 3, 0, 4, 4, 5, 5, 5, 2])])
def test_softmax_sets_equal_separate_batches(image_ids):
    images, captions = unit_vectors(12, 0), unit_vectors(12, 1)
    labels = torch.linspace(0, 1, 12, dtype=torch.float64)
    rows, columns, targets = match_both_ways(*scores_of(images, captions), 0.2, image_ids, softmax_set=4)
    loss, *_ = crcl_loss(rows, columns, labels, targets, 5.0)
    parts, probabilities = [], []
    for own in (slice(0, 4), slice(4, 8), slice(8, 12)):
        ids = None if image_ids is None else image_ids[own]
        *both, places = match_both_ways(*scores_of(images[own], captions[own]), 0.2, ids)
        parts.append(crcl_loss(*both, labels[own], places, 5.0)[0])
        probabilities.append(matching_probability(*both))
    separate = torch.stack(parts).mean()
    torch.testing.assert_close(loss, separate)
    torch.testing.assert_close(matching_probability(rows, columns), torch.cat(probabilities))
    whole = match_both_ways(*scores_of(images, captions), 0.2, image_ids)
    assert (matching_probability(rows, columns) > matching_probability(*whole[:2])).any()
    for found, expected in zip(
        torch.autograd.grad(loss, (images, captions)), torch.autograd.grad(separate, (images, captions)), strict=True
    ):
        torch.testing.assert_close(found, expected)


def test_siblings_are_no_candidates():
    """Against a plain loop over the candidates of each pair."""
    images, captions = unit_vectors(6, 2), unit_vectors(6, 3)
    image_ids = torch.tensor([0, 1, 0, 2, 1, 0])
    rows, columns, targets = match_both_ways(*scores_of(images, captions), 0.1, image_ids)
    assert targets.tolist() == list(range(6))
    cosine = (images @ captions.T).detach().numpy() / 0.1
    for pair in range(6):
        candidates = [other for other in range(6) if other == pair or image_ids[other] != image_ids[pair]]
        for direction, scores in ((rows, cosine[pair]), (columns, cosine[:, pair])):
            expected = np.zeros(6)
            expected[candidates] = np.exp(scores[candidates]) / np.exp(scores[candidates]).sum()
            np.testing.assert_allclose(direction.probabilities[pair].detach(), expected, rtol=1e-10)


def test_softmax_set_must_divide_the_batch():
    with pytest.raises(ValueError, match="softmax_set 5 does not divide the global batch of 12 pairs"):
        match_both_ways(*scores_of(unit_vectors(12, 0), unit_vectors(12, 1)), 0.1, softmax_set=5)
