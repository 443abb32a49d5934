"""The bidirectional hinge against golden numbers and a plain loop (docs/papers/polyloss.md 5)."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clip_itm.methods.triplet.configuration import TripletHeadConfig
from clip_itm.methods.triplet.head import TripletHead, hinge_losses
from clip_itm.training.configuration import TrainingSection

IDS = torch.tensor([0, 1, 2, 0, 3, 1])


@pytest.mark.parametrize("negatives", ["max", "sum"])
def test_golden_hinge(golden, negatives):
    arrays = golden("scan_hinge")
    scores = torch.tensor(arrays["S"], requires_grad=True)
    own, targets = torch.eye(7, dtype=torch.bool), torch.arange(7)
    both = [hinge_losses(matrix, targets, own, 0.2, negatives == "max") for matrix in (scores, scores.T)]
    loss = (both[0] + both[1]).sum()
    loss.backward()
    np.testing.assert_allclose(loss.item(), arrays[f"{negatives}_loss"], rtol=1e-6)
    np.testing.assert_allclose(scores.grad.numpy(), arrays[f"{negatives}_grad"], rtol=0, atol=1e-6)
    assert np.abs(arrays[f"{negatives}_grad"]).max() > 0.5


def unit_pairs(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    texts = images + torch.randn(6, 5, generator=generator, dtype=torch.float64)
    return F.normalize(images, dim=-1), F.normalize(texts, dim=-1)


def looped(scores: torch.Tensor, hardest: bool) -> float:
    total = 0.0
    for matrix in (scores, scores.T):
        for i in range(6):
            costs = [max(0.0, 0.2 + (matrix[i, j] - matrix[i, i]).item()) for j in range(6) if IDS[i] != IDS[j]]
            total += max(costs) if hardest else sum(costs)
    return total


@pytest.mark.parametrize("negatives", ["hardest", "all"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_head_against_a_loop(negatives, reduction):
    head = TripletHead(TripletHeadConfig(negatives=negatives, reduction=reduction))
    images, texts = unit_pairs()
    loss, logs = head.loss(images, texts, IDS, torch.arange(6))
    expected = looped(images @ texts.T, negatives == "hardest") / (6 if reduction == "mean" else 1)
    assert loss.item() == pytest.approx(expected, rel=1e-10)
    assert 0 < logs["active"] <= 1


def test_captions_of_a_photo_are_negatives_on_demand():
    images, texts = unit_pairs()
    masked, _ = TripletHead(TripletHeadConfig()).loss(images, texts, IDS, torch.arange(6))
    released, _ = TripletHead(TripletHeadConfig(same_image="negative")).loss(images, texts, IDS, torch.arange(6))
    distinct, _ = TripletHead(TripletHeadConfig()).loss(images, texts, torch.arange(6), torch.arange(6))
    assert released == distinct
    assert released > masked


def test_warmup_takes_all_negatives():
    head = TripletHead(TripletHeadConfig(warmup_epochs=1))
    images, texts = unit_pairs()
    for epoch, hardest in ((0, False), (1, True)):
        head.epoch = epoch
        assert head.loss(images, texts, IDS, torch.arange(6))[0].item() == pytest.approx(
            looped(images @ texts.T, hardest), rel=1e-10
        )
    conflict = TripletHeadConfig(negatives="all", warmup_epochs=1).conflict(TrainingSection())
    assert conflict == "head.warmup_epochs does nothing with head.negatives: all; leave it out"


def test_a_batch_of_one_photo_costs_nothing():
    images, texts = unit_pairs()
    images.requires_grad_()
    loss, _ = TripletHead(TripletHeadConfig()).loss(images, texts, torch.zeros(6), torch.arange(6))
    loss.backward()
    assert loss == 0
    assert (images.grad == 0).all()
