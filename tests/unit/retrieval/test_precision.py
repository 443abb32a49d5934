"""`pipeline(dtype=...)`: every kind of backbone and head computes in half precision what it computes in float32."""

import pytest
import torch
from transformers import pipeline

from clip_itm.methods.configuration import HeadConfig
from clip_itm.task import TASK
from support.fresh_loads import save
from support.tiny import HEADS
from support.tiny_backbones import CAPTIONS, KINDS, PHOTOS

pytestmark = pytest.mark.slow

DTYPES = [torch.float16, torch.bfloat16]


def check(folder, dtype) -> None:
    plain, half = pipeline(TASK, model=str(folder)), pipeline(TASK, model=str(folder), dtype=dtype)
    assert {parameter.dtype for parameter in half.model.backbone.parameters()} == {dtype}
    embeddings = []
    for queries in (PHOTOS, CAPTIONS):
        exact, rounded = plain.embed(queries), half.embed(queries)
        assert rounded.dtype == torch.float32
        assert torch.cosine_similarity(exact.flatten(1), rounded.flatten(1)).min() > 0.99
        embeddings.append((exact, rounded))
    scores, rounded_scores = (
        pipe.similarity(*pair) for pipe, pair in zip((plain, half), zip(*embeddings, strict=True), strict=True)
    )
    torch.testing.assert_close(rounded_scores, scores, atol=0.05, rtol=0.05)
    half.index(PHOTOS)
    best = rounded_scores[:, 0].sort(descending=True).values.tolist()
    assert [hit["score"] for hit in half(CAPTIONS[0], top_k=4)] == pytest.approx(best, abs=0.01)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_backbone_computes_in_half_precision(kind, dtype, tmp_path):
    check(save(tmp_path / kind, kind), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", HEADS)
def test_every_head_computes_in_half_precision(name, dtype, tmp_path):
    from pydantic import TypeAdapter

    check(save(tmp_path / name, "open_clip", TypeAdapter(HeadConfig).validate_python(HEADS[name])), dtype)
