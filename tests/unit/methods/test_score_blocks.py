"""Losses of dot products in blocks of rows: the same losses and gradients, and never more scores than a block has."""

import pytest
import torch
from pydantic import TypeAdapter

from clip_itm.backbones.features import Features, FeatureWidths
from clip_itm.methods import scores
from clip_itm.methods.build import build_head
from clip_itm.methods.configuration import HeadConfig

IMAGE_IDS = torch.tensor([0, 1, 0, 2, 3, 0, 4])
CAPTION_IDS = torch.tensor([0, 1, 2, 0, 3, 1, 0])


def step(kind: str, image_mode: str, caption_mode: str) -> tuple[dict[str, torch.Tensor], list[tuple[int, ...]]]:
    """Loss, gradients, and the shapes of all scores that were made."""
    options = {"kind": kind, "same_image": image_mode, "same_caption": caption_mode}
    torch.manual_seed(0)
    head = build_head(TypeAdapter(HeadConfig).validate_python(options), FeatureWidths(6, 6, 6)).double()
    shapes: list[tuple[int, ...]] = []
    head.similarity.register_forward_hook(lambda _, inputs, output: shapes.append(tuple(output.shape)))
    pooled = torch.randn(2, 7, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    images, texts = head.image_outputs(Features(pooled[0])), head.text_outputs(Features(pooled[1]))
    loss, _ = head.loss(images, texts, IMAGE_IDS, torch.arange(7), torch.linspace(0.5, 1, 7).double(), CAPTION_IDS)
    loss.backward()
    named = {name: value.grad for name, value in head.named_parameters()}
    return {"loss": loss.detach(), "features": pooled.grad, **named}, shapes


@pytest.mark.parametrize("rows", [1, 3, 6])
@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("image_mode", ["negative", "mask", "positive"])
@pytest.mark.parametrize("caption_mode", ["negative", "mask", "positive"])
def test_blocks_give_the_same(kind, image_mode, caption_mode, rows, monkeypatch):
    expected, shapes = step(kind, image_mode, caption_mode)
    assert shapes == [(7, 7)]
    monkeypatch.setattr(scores, "SCORE_BYTES", rows * 7 * 8)
    found, shapes = step(kind, image_mode, caption_mode)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert value.abs().max() > 1e-6
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-14)
    assert max(min(shape) for shape in shapes) == rows
    assert sum(min(shape) for shape in shapes) == 4 * 7, "both directions, forward and again in the backward pass"


def test_equal_captions_need_their_numbers(monkeypatch):
    monkeypatch.setattr(scores, "SCORE_BYTES", 8)
    head = build_head(
        TypeAdapter(HeadConfig).validate_python({"kind": "clip", "same_caption": "mask"}), FeatureWidths(6, 6, 6)
    )
    with pytest.raises(ValueError, match=r"head\.same_caption: mask needs to know"):
        head.loss(torch.eye(6), torch.eye(6), torch.arange(6), torch.arange(6))
