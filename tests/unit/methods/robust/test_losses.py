"""The bounded losses against loops over their definitions, their limits, masks, positives and extremes."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clip_itm.methods.clip.head import contrastive_losses
from clip_itm.methods.robust.loss import LossOptions, bounded_losses, gce, merged, rince, sce, tal
from clip_itm.methods.scores import local_targets, same_image
from clip_itm.methods.triplet.head import hinge_losses

IDS = torch.tensor([0, 1, 2, 0, 3, 1])
COUNT = len(IDS)
OPTIONS = LossOptions(q=0.4, rince_lambda=0.3, sce_cross_entropy=0.7, sce_reverse=0.6, tal_margin=0.25)
LOSSES = ("gce", "rince", "sce", "tal")
MODES = ("negative", "mask", "positive")
SCALE = 6.0


def similarities(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    images, texts = torch.randn(2, COUNT, 4, generator=generator, dtype=torch.float64)
    return F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T


def of_batch(loss: str, mode: str, scores: torch.Tensor, ids=IDS, options=OPTIONS, scale=SCALE) -> torch.Tensor:
    return bounded_losses(loss, scores, scores.T, local_targets(scores), same_image(scores, ids), mode, scale, options)


def looped(loss: str, mode: str, scores: np.ndarray) -> list[float]:
    """The definitions, a row at a time, in the words of the papers."""
    q, lam, a, b, margin = OPTIONS
    found = []
    for k in range(COUNT):
        total = 0.0
        for row in (scores[k], scores[:, k]):
            others = [j for j in range(COUNT) if j != k]
            siblings = [j for j in others if IDS[j] == IDS[k]]
            negatives = [j for j in others if mode == "negative" or j not in siblings]
            own = [k, *siblings] if mode == "positive" else [k]
            e_own = sum(math.exp(SCALE * row[j]) for j in own)
            e_negatives = sum(math.exp(SCALE * row[j]) for j in negatives)
            p = e_own / (e_own + e_negatives)
            match loss:
                case "infonce":
                    total += -math.log(p)
                case "gce":
                    total += (1 - p**q) / q
                case "rince":
                    total += -(e_own**q) / q + (lam * (e_own + e_negatives)) ** q / q
                case "sce":
                    total += -a * math.log(p) - b * -4 * (1 - p)
                case "tal":
                    total += max(0.0, margin - math.log(e_own) / SCALE + math.log(e_negatives) / SCALE)
        found.append(total / 2)
    return found


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("loss", ["infonce", *LOSSES])
def test_against_a_loop(loss, mode):
    scores = similarities()
    np.testing.assert_allclose(of_batch(loss, mode, scores).numpy(), looped(loss, mode, scores.numpy()), rtol=1e-12)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("loss", LOSSES)
def test_gradients(loss, mode):
    scores = similarities().requires_grad_()
    scale = torch.tensor(SCALE, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s, t: of_batch(loss, mode, s, scale=t), (scores, scale))


@pytest.mark.parametrize("mode", MODES)
def test_infonce_is_the_plain_head_to_the_bit(mode):
    generator = torch.Generator().manual_seed(2)
    images, texts = (F.normalize(x, dim=-1) for x in torch.randn(2, COUNT, 8, generator=generator))
    expected = contrastive_losses(images, texts, 13.0, IDS, mode)
    assert torch.equal(of_batch("infonce", mode, images @ texts.T, scale=13.0), expected)


@pytest.mark.parametrize("mode", MODES)
def test_limits_at_the_plain_loss(mode):
    """gce and rince (lambda = 1) towards q = 0, in values and gradients; sce without its reverse part."""
    plain = OPTIONS._replace(q=1e-7, rince_lambda=1.0, sce_cross_entropy=1.0, sce_reverse=0.0)
    scores = similarities().requires_grad_()
    expected = of_batch("infonce", mode, scores)
    wanted = torch.autograd.grad(expected.sum(), scores)[0]
    for loss in ("gce", "rince", "sce"):
        found = of_batch(loss, mode, scores, options=plain)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(torch.autograd.grad(found.sum(), scores)[0], wanted, rtol=1e-5, atol=1e-5)


def test_forms_at_q_1():
    scores, nothing = SCALE * similarities(), torch.zeros(COUNT, COUNT, dtype=torch.bool)
    targets, own = torch.arange(COUNT), torch.eye(COUNT, dtype=torch.bool)
    p = scores.softmax(dim=1).diagonal()
    torch.testing.assert_close(gce(scores, targets, nothing, q=1.0), 1 - p)
    e = scores.exp()
    expected = -0.7 * e.diagonal() + 0.3 * e.masked_fill(own, 0).sum(dim=1)
    torch.testing.assert_close(rince(scores, targets, nothing, q=1.0, rince_lambda=0.3), expected)


def test_bounds():
    """gce is at most 1 / q and sce without its plain part at most 4, however improbable the pair."""
    logits = torch.tensor([[-300.0, 300.0], [0.0, 0.0]], dtype=torch.float64)
    targets, nothing = torch.tensor([0, 1]), torch.zeros(2, 2, dtype=torch.bool)
    assert gce(logits, targets, nothing, q=0.5).tolist() == pytest.approx([2, (1 - 0.5**0.5) / 0.5])
    assert sce(logits, targets, nothing, cross_entropy=0.0, reverse=1.0).tolist() == pytest.approx([4, 2])


def test_tal_is_above_the_hinge_with_the_hardest_negative_and_approaches_it():
    scores, targets = similarities(), torch.arange(COUNT)
    of_image = same_image(scores, IDS)
    siblings = of_image & ~torch.eye(COUNT, dtype=torch.bool)
    hinge = hinge_losses(scores, targets, of_image, margin=0.25, hardest=True)
    assert (hinge > 0).any()
    gaps = []
    for scale in (1.0, 10.0, 1e5):
        gap = tal(scale * scores, targets, siblings, margin=0.25, scale=scale) - hinge
        assert (gap >= -1e-9).all()
        assert (gap <= math.log(COUNT) / scale + 1e-9).all()
        gaps.append(gap.max().item())
    assert gaps[0] > gaps[1] > gaps[2]


@pytest.mark.parametrize("loss", LOSSES)
def test_what_is_left_out_has_no_say(loss):
    """Siblings move no loss under mask and get no gradient; under negative they do."""
    scores = similarities().requires_grad_()
    siblings = same_image(scores, IDS) & ~torch.eye(COUNT, dtype=torch.bool)
    moved = torch.where(siblings, scores + 0.3, scores)
    assert torch.equal(of_batch(loss, "mask", moved), of_batch(loss, "mask", scores))
    assert not torch.equal(of_batch(loss, "negative", moved), of_batch(loss, "negative", scores))
    (gradient,) = torch.autograd.grad(of_batch(loss, "mask", scores).sum(), scores)
    assert (gradient[siblings] == 0).all()
    assert (gradient[~siblings] != 0).any()


def test_captions_of_a_photo_count_together_as_positives():
    scores = similarities()
    of_image = same_image(scores, IDS)
    together = merged(SCALE * scores, torch.arange(COUNT), of_image)
    own = of_image.double() * (SCALE * scores).exp()
    torch.testing.assert_close(together.diagonal(), own.sum(dim=1).log())
    different = together != SCALE * scores
    assert not (different & ~torch.eye(COUNT, dtype=torch.bool)).any()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("loss", LOSSES)
def test_the_order_of_the_pairs_does_not_matter(loss, mode):
    scores = similarities()
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(1))
    moved = of_batch(loss, mode, scores[order][:, order], IDS[order])
    torch.testing.assert_close(moved, of_batch(loss, mode, scores)[order])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("loss", LOSSES)
def test_extremes_in_float32_stay_finite(loss, mode):
    """Scores of -1 and 1 at a low temperature, with a hopeless pair, a perfect one, and one without a negative."""
    scale = 100.0
    for diagonal, others in ((-1.0, 1.0), (1.0, -1.0), (1.0, 1.0), (0.0, 0.0)):
        scores = torch.full((COUNT, COUNT), others).fill_diagonal_(diagonal).requires_grad_()
        losses = of_batch(loss, mode, scores, scale=scale)
        losses.sum().backward()
        assert losses.isfinite().all()
        assert scores.grad.isfinite().all()
    scores = torch.tensor([[0.4, 0.2], [0.1, 0.3]], requires_grad=True)
    losses = of_batch(loss, mode, scores, torch.tensor([5, 5]), scale=scale)
    losses.sum().backward()
    assert losses.isfinite().all()
    assert scores.grad.isfinite().all()
    if mode == "mask" and loss != "rince":
        assert losses.tolist() == [0, 0]


def test_another_name_is_refused():
    with pytest.raises(ValueError, match="no loss is called 'mae'; there are infonce, gce, rince, sce and tal"):
        of_batch("mae", "mask", similarities())
