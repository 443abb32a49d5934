"""Scores of a fold under similarities with batch statistics and padding: they are of a pair, whatever its block."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from clip_itm.backbones.features import Features, FeatureWidths
from clip_itm.calibration.scores import made_mismatches, score_pairs
from clip_itm.similarity.build import build_similarity
from clip_itm.similarity.configuration import SafSection, ScanSection, SgrSection
from clip_itm.training.encode import scoring

SIZES = {"token_dim": 6, "max_words": 5}
SECTIONS = {
    "scan": ScanSection(**SIZES),
    "saf": SafSection(regions=4, similarity_dim=7, dropout=0.3, **SIZES),
    "sgr": SgrSection(regions=4, similarity_dim=7, dropout=0.3, **SIZES),
}


@pytest.fixture(params=SECTIONS)
def model(request):
    """What `scoring` asks of a model: a similarity in training mode, behind a few steps of statistics."""
    torch.manual_seed(0)
    similarity = build_similarity(SECTIONS[request.param], FeatureWidths(6, 6, 6)).double().train()
    images, texts = embeddings(similarity, 9, 9)
    for _ in range(3):
        similarity(images, texts)
    return SimpleNamespace(head=SimpleNamespace(similarity=similarity), device=torch.device("cpu"))


def embeddings(similarity, images: int, texts: int) -> tuple[torch.Tensor, torch.Tensor]:
    words = torch.arange(5) < torch.randint(1, 6, (texts, 1))
    tokens = [torch.randn(count, size, 6, dtype=torch.float64) for count, size in ((images, 4), (texts, 5))]
    with torch.no_grad():
        similarity.eval()  # captions of one length, so that they stack
        embedded = (
            similarity.embed_images(Features(None, tokens[0])),
            similarity.embed_texts(Features(None, tokens[1], words)),
        )
        similarity.train()
    return embedded


@pytest.mark.parametrize("candidates", [None, 6])
def test_scores_do_not_depend_on_the_block_nor_leave_a_trace(model, candidates):
    similarity = model.head.similarity
    image = np.repeat(np.arange(11), 3)
    images, texts = embeddings(similarity, 11, len(image))
    mismatch = made_mismatches(image, np.random.default_rng(0))
    before = {name: value.clone() for name, value in similarity.state_dict().items()}
    found = [
        score_pairs(
            images, texts, image, mismatch, 5.0, scoring(model), block, candidates, np.random.default_rng(candidates)
        )
        for block in (1, 8, 256)
    ]
    assert similarity.training
    assert all(torch.equal(value, before[name]) for name, value in similarity.state_dict().items())
    for scores in found[1:]:
        for name in ("z", "z0", "p", "p0"):
            np.testing.assert_allclose(getattr(scores, name), getattr(found[0], name), atol=1e-9)
    assert found[0].z.std() > 1e-3
