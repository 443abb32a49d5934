"""PolyLoss against golden numbers, a plain loop, and its properties (docs/papers/polyloss.md 3)."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clip_itm.methods.polyloss.configuration import PolyLossHeadConfig
from clip_itm.methods.polyloss.head import PolyLossHead
from clip_itm.methods.polyloss.loss import Weighting, polynomial, polynomial_losses
from clip_itm.similarity.scan import scan_similarity

CASES = (
    "early",
    "trained",
    "allinactive",
    "deadzone",
    "lowneg",
    "margin0",
    "margin05",
    "above1",
    "two",
    "ties",
    "pos1",
)


def polyloss(scores: torch.Tensor, margin: float, **options) -> torch.Tensor:
    """Of a square matrix whose diagonal holds the pairs."""
    own = torch.eye(len(scores), dtype=torch.bool)
    targets = torch.arange(len(scores))
    both = [polynomial_losses(matrix, targets, own, margin, **options) for matrix in (scores, scores.T)]
    return (both[0].losses + both[1].losses).mean()


@pytest.mark.parametrize("case", [*CASES, "one", "pos1all"])
def test_golden_matrices(golden, case):
    """Loss and gradient, of ties too: the first of equal negatives gets all of it."""
    arrays = golden("polyloss_matrix")
    margin = float(arrays[f"{case}_margin"])
    for dtype, suffix, tolerance in ((torch.float32, "", 2e-6), (torch.float64, "64", 1e-9)):
        if f"{case}_loss{suffix}" not in arrays:
            continue
        scores = torch.tensor(arrays[f"{case}_S"], dtype=dtype, requires_grad=True)
        loss = polyloss(scores, margin)
        loss.backward()
        assert loss.shape == ()
        np.testing.assert_allclose(loss.item(), arrays[f"{case}_loss{suffix}"], rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(scores.grad.numpy(), arrays[f"{case}_grad{suffix}"], rtol=tolerance, atol=tolerance)


def test_golden_polynomials(golden):
    arrays = golden("polyloss_scalar")
    for p, q, expected in zip(arrays["p"], arrays["q"], arrays["loss"], strict=True):
        scores = torch.tensor([[p, q], [q, p]])
        assert polyloss(scores, float(arrays["margin"])).item() == pytest.approx(expected, abs=1e-9)
    assert polynomial(torch.tensor([2.0]), (3.0, -1.0, 0.5)).item() == 10.5


@pytest.mark.parametrize(("direction", "scale"), [("i2t", 4.0), ("t2i", 9.0)])
def test_golden_scan(golden, direction, scale):
    """The published setting from end to end: attention, scores, loss, gradients of regions and words."""
    arrays = golden("polyloss_scan_e2e")
    regions, words = (torch.tensor(arrays[name]).requires_grad_() for name in ("regions", "words"))
    scores = scan_similarity(regions, words, direction, softmax_scale=scale)
    loss = polyloss(scores, 0.2)
    loss.backward()
    for found, name in ((scores, "scores"), (loss, "loss"), (regions.grad, "grad_regions"), (words.grad, "grad_words")):
        expected = arrays[f"{direction}_{name}"]
        np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-4, atol=1e-5, err_msg=name)
        assert np.abs(expected).max() > 1e-3


def random_scores(seed: int, count: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.3 + 0.3 * torch.randn(count, count, generator=generator, dtype=torch.float64)


def looped(scores: torch.Tensor, same_image: torch.Tensor, margin: float, form: str, joint: bool, floor) -> float:
    """One direction as it is defined, pair by pair."""
    total = 0.0
    for i, row in enumerate(scores.tolist()):
        p = row[i]
        gated = [s for s, same in zip(row, same_image[i].tolist(), strict=True) if not same and s + margin > p]
        if p >= 1 - 1e-5 or not gated:
            continue
        costs = []
        for n in [max(gated)] if form == "max" else gated:
            of_positive = 0.2 * p * p - 0.7 * p + 0.5
            of_negative = 0.0 if floor is not None and n <= floor else 0.9 * n * n - 0.4 * n + 0.03
            costs.append(max(0, of_positive + of_negative) if joint else max(0, of_positive) + max(0, of_negative))
        total += sum(costs) / len(costs)
    return total / len(scores)


@pytest.mark.parametrize("form", ["max", "avg"])
@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("floor", [None, 0.349])
def test_forms_against_a_loop(form, joint, floor):
    """With photos that have several captions in the batch; some pairs are active and some are not."""
    image_ids = torch.tensor([0, 1, 0, 2, 3, 1, 4])
    same_image = image_ids[:, None] == image_ids[None]
    weighting = Weighting(joint_clamp=joint, floor=floor)
    shares = []
    for seed in range(4):
        scores = random_scores(seed).requires_grad_()
        found = polynomial_losses(scores, torch.arange(7), same_image, 0.2, weighting, form)
        assert found.losses.mean().item() == pytest.approx(
            looped(scores, same_image, 0.2, form, joint, floor), abs=1e-12
        )
        found.losses.sum().backward()
        assert (scores.grad[same_image & ~torch.eye(7, dtype=torch.bool)] == 0).all()
        assert scores.grad.isfinite().all()
        shares.append(found.active.float().mean().item())
    assert 0 < min(shares) < 1


def test_a_batch_of_one_photo_costs_nothing():
    scores = random_scores(0, 3).requires_grad_()
    found = polynomial_losses(scores, torch.arange(3), torch.ones(3, 3, dtype=torch.bool), 0.2)
    found.losses.sum().backward()
    assert found.losses.tolist() == [0, 0, 0]
    assert (scores.grad == 0).all()


def test_the_floor_is_the_larger_root():
    config = PolyLossHeadConfig(neg_floor=True)
    assert config.floor == pytest.approx(0.3489, abs=1e-4)
    assert polynomial(torch.tensor(config.floor), config.negative).item() == pytest.approx(0, abs=1e-6)
    low = torch.tensor([[0.1, 0.0], [0.0, 0.1]])
    positive_only = polyloss(low, 0.2, weighting=Weighting(floor=config.floor))
    assert positive_only.item() == pytest.approx(2 * (0.2 * 0.01 - 0.07 + 0.5))
    assert polyloss(low, 0.2) > positive_only
    with pytest.raises(ValueError, match="neg_floor needs a polynomial that opens upwards and has a root"):
        PolyLossHeadConfig(neg_floor=True, negative=(0.9, -0.4, 0.3))


# The head


def unit_pairs(count: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Photos and captions that match, compressed into a cone as those of zero-shot CLIP are."""
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(count, 6, generator=generator)
    texts = images + 0.8 * torch.randn(count, 6, generator=generator)
    return F.normalize(images + 1.5, dim=-1), F.normalize(texts + 1.5, dim=-1)


IDS = torch.tensor([0, 1, 2, 3, 0, 4, 5, 6])


def test_the_first_batch_sets_the_map():
    """The mean of its negatives goes to 0.1, that of its positives to 0.5; later batches leave it alone."""
    head = PolyLossHead(PolyLossHeadConfig(score_map="affine")).train()
    images, texts = unit_pairs()
    head.loss(images, texts, IDS, torch.arange(8))
    mapped, same_image = head.score_map(images @ texts.T), IDS[:, None] == IDS[None]
    assert mapped.diagonal().mean().item() == pytest.approx(0.5, abs=1e-5)
    assert mapped[~same_image].mean().item() == pytest.approx(0.1, abs=1e-5)
    before = {name: value.clone() for name, value in head.state_dict().items()}
    loss, logs = head.loss(images.flip(0), texts, IDS, torch.arange(8))
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())
    loss.backward()
    assert head.score_map.slope.grad.abs() > 1e-6
    assert logs.keys() == {"active", "positive", "hardest_negative"}


def test_a_map_that_was_set_is_loaded_as_such():
    head = PolyLossHead(PolyLossHeadConfig(score_map="affine"))
    head.loss(*unit_pairs(), IDS, torch.arange(8))
    other = PolyLossHead(PolyLossHeadConfig(score_map="affine"))
    other.load_state_dict(head.state_dict())
    images, texts = unit_pairs()
    assert torch.equal(
        other.loss(images.flip(1), texts, IDS, torch.arange(8))[0],
        head.loss(images.flip(1), texts, IDS, torch.arange(8))[0],
    )
    assert torch.equal(other.score_map.slope, head.score_map.slope)


def test_a_map_of_an_untrained_model_stays_moderate():
    """Positives no better than negatives: the slope is bounded, the positives stand at 0.5."""
    head = PolyLossHead(PolyLossHeadConfig(score_map="affine")).train()
    images, texts = unit_pairs()
    head.loss(images, texts.roll(1, 0), torch.arange(8), torch.arange(8))
    assert head.score_map.slope == 10
    mapped = head.score_map((images * texts.roll(1, 0)).sum(dim=1))
    assert mapped.mean().item() == pytest.approx(0.5, abs=1e-5)


def test_warmup_is_the_plain_loss():
    config = PolyLossHeadConfig(warmup_epochs=2, score_map="affine", warmup_temperature=0.1)
    head = PolyLossHead(config).train()
    images, texts = unit_pairs()
    logits = images @ texts.T / 0.1
    logits = logits.masked_fill((IDS[:, None] == IDS[None]) & ~torch.eye(8, dtype=torch.bool), -torch.inf)
    expected = (F.cross_entropy(logits, torch.arange(8)) + F.cross_entropy(logits.T, torch.arange(8))) / 2
    head.epoch = 1
    torch.testing.assert_close(head.loss(images, texts, IDS, torch.arange(8))[0], expected)
    assert not head.score_map.is_set
    head.epoch = 2
    loss, _ = head.loss(images, texts, IDS, torch.arange(8))
    assert head.score_map.is_set
    assert (loss - expected).abs() > 1e-3


def test_weights_of_pairs_multiply_their_losses():
    head = PolyLossHead(PolyLossHeadConfig())
    images, texts = unit_pairs()
    weight = torch.zeros(8)
    weight[3] = 1
    alone, _ = head.loss(images, texts, IDS, torch.arange(8), weight)
    rest, _ = head.loss(images, texts, IDS, torch.arange(8), 1 - weight)
    whole, _ = head.loss(images, texts, IDS, torch.arange(8))
    torch.testing.assert_close(alone + rest, whole)
    assert 0 < alone < whole
