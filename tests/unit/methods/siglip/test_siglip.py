"""The sigmoid loss against its definition (Zhai et al., ICCV 2023, section 3.2)."""

import math

import pytest
import torch
import torch.nn.functional as F

from clip_itm.methods.siglip.configuration import SiglipHeadConfig
from clip_itm.methods.siglip.head import SiglipHead

IDS = torch.tensor([0, 1, 2, 0, 3, 1])
PAIRS = torch.arange(6)


def unit_pairs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(2, 6, 5, generator=generator, dtype=torch.float64)
    return F.normalize(images, dim=-1).requires_grad_(), F.normalize(texts, dim=-1).requires_grad_()


def looped(images: torch.Tensor, texts: torch.Tensor, scale: float, bias: float, mode: str) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for i in range(6):
        for j in range(6):
            sibling = i != j and IDS[i] == IDS[j]
            if sibling and mode == "mask":
                continue
            z = 1 if i == j or (sibling and mode == "positive") else -1
            total = total - F.logsigmoid(z * (scale * images[i] @ texts[j] + bias))
    return total / 6


@pytest.mark.parametrize("mode", ["negative", "mask", "positive"])
def test_against_a_loop(mode):
    """Values, and gradients of both sides and of scale and bias."""
    head = SiglipHead(SiglipHeadConfig(same_image=mode, temperature=0.2, bias=-2)).double()
    images, texts = unit_pairs()
    loss, _ = head.loss(images, texts, IDS, PAIRS)
    expected = looped(images, texts, head.logit_scale.exp(), head.logit_bias, mode)
    torch.testing.assert_close(loss, expected)
    inputs = (images, texts, head.logit_scale, head.logit_bias)
    for found, wanted in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(found, wanted)
        assert wanted.abs().max() > 1e-3


def test_initial_scale_and_bias():
    """From scratch as published, from pretrained towers theirs, from the recipe before all."""
    for config, pretrained, expected in (
        (SiglipHeadConfig(), (None, None), (math.log(10), -10)),
        (SiglipHeadConfig(), (math.log(117.0), -12.9), (math.log(117), -12.9)),
        (SiglipHeadConfig(temperature=0.05, bias=-5), (math.log(117.0), -12.9), (math.log(20), -5)),
    ):
        head = SiglipHead(config, *pretrained)
        assert (head.logit_scale.item(), head.logit_bias.item()) == pytest.approx(expected)
        assert head.scale().item() == pytest.approx(math.exp(expected[0]))


def test_large_logits_stay_finite():
    head = SiglipHead(SiglipHeadConfig(temperature=1e-4, bias=0))
    images, texts = (x.detach().float().requires_grad_() for x in unit_pairs())
    loss, _ = head.loss(images, texts, IDS, PAIRS)
    loss.backward()
    assert loss.isfinite()
    assert images.grad.isfinite().all()


def test_weights_of_pairs_multiply_their_losses():
    head = SiglipHead(SiglipHeadConfig())
    images, texts = unit_pairs()
    weight = torch.tensor([0, 0, 1, 0, 0, 0.5], dtype=torch.float64)
    parts = [head.loss(images, texts, IDS, PAIRS, w)[0] for w in (weight, 1 - weight)]
    torch.testing.assert_close(parts[0] + parts[1], head.loss(images, texts, IDS, PAIRS)[0])
