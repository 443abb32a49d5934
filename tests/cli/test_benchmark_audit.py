"""The benchmark of audits: the truth of every kind of noise, figures of made scores, and the tables."""

import importlib.util

import numpy as np
import pytest
import torch
from datasets import Dataset

from clip_itm.auditing.estimate import Estimate, PairScore
from clip_itm.data.rows import ROW_FEATURES, Split
from support.paths import ROOT


def load_benchmark():
    spec = importlib.util.spec_from_file_location("benchmark_audit", ROOT / "benchmarks" / "audit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


benchmark = load_benchmark()
PHOTOS = 40


@pytest.fixture
def judged():
    """40 photos with two captions each; a caption is its own number as a vector, one from elsewhere its negative."""
    rows = [
        {
            "image": {"path": f"{number}.jpg", "bytes": None},
            "image_id": str(number),
            "captions": [f"a dog number {number}", f"dog {number}"],
            "caption_ids": [f"{number}#0", f"{number}#1"],
        }
        for number in range(PHOTOS)
    ]
    split = Split("test", Dataset.from_list(rows, features=ROW_FEATURES))
    near = (np.arange(PHOTOS)[:, None] + np.arange(1, 4)) % PHOTOS
    texts, outside = torch.arange(2.0 * PHOTOS)[:, None], -1 - torch.arange(50.0)[:, None]
    return benchmark.Judged(split, torch.zeros(PHOTOS, 1), texts, near, outside, [f"line {k}" for k in range(50)])


@pytest.mark.parametrize("level", ["caption", "outside", "image", "neighbour", "noun"])
def test_vectors_captions_and_truth_belong_together(judged, level):
    texts, captions, wrong = benchmark.noisy(judged, level, 0.4, 99)
    own = judged.split.pairs.captions.to_pylist()
    for pair, (vector, caption) in enumerate(zip(texts[:, 0].tolist(), captions, strict=True)):
        expected = own[int(vector)] if vector >= 0 else judged.lines[int(-vector - 1)]
        assert caption == expected
        assert wrong[pair] == (vector < 0 or int(vector) // 2 != pair // 2)
    assert 0.25 < wrong.mean() <= 0.4
    assert (texts.min() < 0) == (level == "outside")


def test_draws_differ_and_repeat(judged):
    first, again, other = (benchmark.noisy(judged, "outside", 0.2, seed)[2] for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def test_figures_and_tables():
    wrong = np.array([True, False, False, True])
    perfect = PairScore(np.array([9.0, 0.0, 1.0, 8.0]), np.array([0.0, 1.0, 1.0, 0.0]))
    partly = PairScore(np.array([np.nan, 1.0, 0.0, 0.5]), None, "it only ranks")
    found = Estimate({"crossfit": perfect, "siblings": partly}, 0.5, 0.4, 0.6)
    row = benchmark.figures(found, wrong)
    assert row["inside"]
    assert row["scores"]["crossfit"] == {"auc": 1.0, "precision": 1.0, "ece": 0.0}
    assert row["scores"]["siblings"] == {"auc": 0.5, "precision": 0.0, "ece": None}
    other = benchmark.figures(Estimate(found.scores, 0.1, 0.0, 0.2), wrong)
    text = benchmark.tables([{"level": "caption", "ratio": 0.5, **one} for one in (row, other)])
    assert "| caption 0.5 | .500 ± .000 | .300 ± .200 | 0.400 to 0.600 | 1 of 2 |" in text
    assert "| caption 0.5 | 1.000 ± .000 | .500 ± .000 |" in text
    assert "| caption 0.5 | .000 ± .000 |  |" in text, "no ECE of a score that only ranks"


def test_a_figure_that_only_some_draws_have_says_so():
    assert benchmark.spread([0.5, None]) == ".500 ± .000 (1 of 2)"
    assert benchmark.spread([None]) == ""
