"""SCAN attention against golden numbers, a plain loop, and its properties (docs/papers/polyloss.md 4)."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clip_itm.backbones.features import Features, FeatureWidths
from clip_itm.similarity import tokens
from clip_itm.similarity.configuration import ScanSection
from clip_itm.similarity.scan import Scan, scan_similarity
from clip_itm.similarity.tokens import l2, safe_sqrt, token_mask

WIDTHS = FeatureWidths(pooled=8, image_tokens=8, text_tokens=8)


def options_of(name: str) -> dict:
    """Arguments of `scan_similarity` that the name of a golden array stands for."""
    direction, normalization, aggregation, scale, *lse = name.split("__")
    return {
        "direction": direction,
        "normalization": normalization,
        "aggregation": aggregation,
        "softmax_scale": float(scale.removeprefix("lam")),
        "lse_scale": float(lse[0].removeprefix("lse")) if lse else 6.0,
    }


def grids(seed: int = 0, photos: int = 3, captions: int = 4, dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit regions [photos, 5, 8] and words [captions, 6, 8], captions of 1 to 6 words with padding."""
    generator = torch.Generator().manual_seed(seed)
    images = F.normalize(torch.randn(photos, 5, 8, generator=generator, dtype=dtype), dim=-1)
    texts = F.normalize(torch.randn(captions, 6, 8, generator=generator, dtype=dtype), dim=-1)
    lengths = 1 + torch.arange(captions) * 5 // max(1, captions - 1)
    return images, texts * (torch.arange(6) < lengths[:, None])[..., None]


def test_golden_similarities(golden):
    arrays = golden("scan_similarity")
    images, texts = torch.tensor(arrays["regions"]), torch.tensor(arrays["words"])
    assert token_mask(texts).sum(dim=1).tolist() == arrays["lengths"].tolist()
    names = [name for name in arrays if "__lam" in name]
    assert len(names) == 23
    for name in names:
        found, expected = scan_similarity(images, texts, **options_of(name)), arrays[name]
        tolerance = 1e-4 * (1 + np.abs(expected).max())
        np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("direction", ["t2i", "i2t"])
@pytest.mark.parametrize("aggregation", ["Mean", "LogSumExp"])
def test_golden_gradients(golden, direction, aggregation):
    arrays = golden("scan_similarity")
    images, texts = (torch.tensor(arrays[name]).requires_grad_() for name in ("regions", "words"))
    scale = {"t2i": 9.0, "i2t": 4.0}[direction]
    scores = scan_similarity(images, texts, direction, softmax_scale=scale, aggregation=aggregation)
    (scores * torch.tensor(arrays["cotangent"])).sum().backward()
    for found, side in ((images.grad, "regions"), (texts.grad, "words")):
        expected = arrays[f"grad_{side}__{direction}__{aggregation}"]
        np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-4 * (1 + np.abs(expected).max()))
        assert np.abs(expected).max() > 1e-2
    assert (texts.grad[~token_mask(texts)] == 0).all()


def attend(queries: torch.Tensor, contexts: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention [c, q] and attended vectors [q, D] of one pair, made as they are defined."""
    scores = F.leaky_relu(contexts @ queries.T, 0.1)
    attention = (scale * scores / (scores.norm(dim=1, keepdim=True) + 1e-8)).softmax(dim=0)
    return attention, attention.T @ contexts


def test_golden_attention_and_the_definition(golden):
    """The loop below makes the golden attended vectors, and the matrix form gives its scores."""
    arrays = golden("scan_similarity")
    images, texts = torch.tensor(arrays["regions"]), torch.tensor(arrays["words"])
    lengths = arrays["lengths"].tolist()
    for direction, scale in (("t2i", 9.0), ("i2t", 4.0)):
        expected = torch.empty(len(images), len(texts))
        for photo, regions in enumerate(images):
            for caption, words in enumerate(texts):
                words = words[: lengths[caption]]
                queries, contexts = (words, regions) if direction == "t2i" else (regions, words)
                attention, attended = attend(queries, contexts, scale)
                if caption == 0:
                    for name, values in (("attention", attention), ("context", attended)):
                        golden_values = arrays[f"{direction}_caption0_{name}"][photo]
                        np.testing.assert_allclose(values.numpy(), golden_values, rtol=0, atol=1e-5)
                expected[photo, caption] = F.cosine_similarity(queries, attended, dim=1).mean()
        torch.testing.assert_close(
            scan_similarity(images, texts, direction, softmax_scale=scale), expected, rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("direction", ["t2i", "i2t"])
@pytest.mark.parametrize("normalization", ["clipped_l2norm", "l1norm", "softmax", "no_norm"])
def test_a_score_depends_on_its_pair_alone(direction, normalization):
    """Neither on more padding, nor on other items, nor on the order of tokens."""
    images, texts = grids()
    scores = scan_similarity(images, texts, direction, normalization)
    longer = torch.cat([torch.zeros(4, 2, 8), texts, torch.zeros(4, 3, 8)], dim=1)
    padded_images = torch.cat([images, torch.zeros(3, 2, 8)], dim=1)
    torch.testing.assert_close(scan_similarity(padded_images, longer, direction, normalization), scores)
    torch.testing.assert_close(scan_similarity(images[1:2], texts[2:3], direction, normalization), scores[1:2, 2:3])
    shuffled = scan_similarity(images[:, torch.randperm(5)], texts.flip(1), direction, normalization)
    torch.testing.assert_close(shuffled, scores)


@pytest.mark.parametrize("direction", ["t2i", "i2t"])
@pytest.mark.parametrize("aggregation", ["Mean", "Sum", "Max", "LogSumExp"])
def test_captions_without_words_score_zero_and_leave_gradients_finite(direction, aggregation):
    images, texts = grids()
    texts[1] = 0
    images.requires_grad_(), texts.requires_grad_()
    scores = scan_similarity(images, texts, direction, aggregation=aggregation)
    # regions find nothing in i2t, and LogSumExp over R relevances of 0 is (ln R) / 6
    expected = math.log(5) / 6 if (direction, aggregation) == ("i2t", "LogSumExp") else 0
    torch.testing.assert_close(scores[:, 1], torch.full((3,), expected, dtype=torch.float64))
    scores.sum().backward()
    assert images.grad.isfinite().all()
    assert texts.grad.isfinite().all()


def test_roots_have_finite_gradients():
    values = torch.tensor([0.0, 4.0], requires_grad=True)
    roots = safe_sqrt(values)
    roots.sum().backward()
    assert roots.tolist() == [0, 2]
    assert values.grad.tolist() == [0, 0.25]


@pytest.mark.parametrize("direction", ["t2i", "i2t"])
def test_blocks_change_neither_scores_nor_gradients(monkeypatch, direction):
    """Checkpointed blocks of one caption against everything at once."""
    scan = Scan(ScanSection(direction=direction), WIDTHS)
    found = []
    for size in (2**20, 1):
        monkeypatch.setattr(tokens, "BLOCK_BYTES", size)
        images, texts = (grid.requires_grad_() for grid in grids())
        scores = scan(images, texts)
        (scores**2).sum().backward()
        found.append((scores.detach(), images.grad, texts.grad))
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole)


def test_embeddings_stack_in_evaluation():
    """Unit vectors and zeros; captions of any length have `max_words` places then, and score as they do in training."""
    scan = Scan(ScanSection(token_dim=12, max_words=6), FeatureWidths(pooled=4, image_tokens=7, text_tokens=5))
    tokens_of = {length: torch.randn(3, length, 5) for length in (4, 9)}
    masks = {length: torch.arange(length) < torch.tensor([[2], [3], [length]]) for length in (4, 9)}
    images = scan.embed_images(Features(None, torch.randn(2, 5, 7, dtype=torch.float16)))
    assert images.shape == (2, 5, 12)
    assert images.dtype == torch.float32
    for length in (4, 9):
        features = Features(None, tokens_of[length], masks[length])
        in_training = scan.train().embed_texts(features)
        in_evaluation = scan.eval().embed_texts(features)
        assert in_training.shape == (3, min(length, 6), 12)
        assert in_evaluation.shape == (3, 6, 12)
        assert token_mask(in_evaluation).sum(dim=1).tolist() == [2, 3, min(length, 6)]
        lengths = in_evaluation.norm(dim=-1)
        torch.testing.assert_close(lengths[lengths > 0], torch.ones(5 + min(length, 6)))
        torch.testing.assert_close(scan(images, in_evaluation), scan(images, in_training))
        torch.testing.assert_close(scan.vectors(in_evaluation), scan.vectors(in_training))
    torch.testing.assert_close(scan.vectors(images), l2(images.mean(dim=1)))


def test_towers_of_two_widths_need_a_projection():
    with pytest.raises(
        ValueError, match=r"photos have 7 numbers and those of captions 5; set head.similarity.token_dim"
    ):
        Scan(ScanSection(), FeatureWidths(pooled=4, image_tokens=7, text_tokens=5))


def test_options():
    """The four settings of the SCAN authors, and that of PolyLoss, are expressible."""
    assert ScanSection(direction="i2t").attention_multiplier == 4
    assert ScanSection(aggregation="LogSumExp").lse_multiplier == 6
    coco = ScanSection(direction="i2t", aggregation="LogSumExp", lse_scale=20)
    assert (coco.attention_multiplier, coco.lse_multiplier) == (4, 20)
    with pytest.raises(ValueError, match="lse_scale does nothing with aggregation Mean"):
        ScanSection(lse_scale=5)
