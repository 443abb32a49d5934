"""Tables, JSON, the picture, and the module for the `evaluate` library."""

import json
import sys

import evaluate
import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from clip_itm.evaluation.plot import bins_needed, plot_retrieval, rank_fractions
from clip_itm.evaluation.protocols import evaluate_retrieval
from clip_itm.evaluation.ranking import Ranks
from clip_itm.evaluation.recall import RECALLS
from clip_itm.evaluation.report import markdown_table, terminal_table
from clip_itm.evaluation.result import RetrievalResult
from clip_itm.files import write_json
from support.paths import ROOT

METRIC = ROOT / "clip_itm" / "evaluation" / "metric" / "image_text_recall"


def embeddings(num_images=50, seed=0, noise=1.0):
    generator = torch.Generator().manual_seed(seed)
    owner = torch.arange(num_images).repeat_interleave(torch.randint(1, 4, (num_images,), generator=generator))
    images = torch.randn(num_images, 8, generator=generator)
    return images, images[owner] + noise * torch.randn(len(owner), 8, generator=generator), owner


@pytest.fixture
def result() -> RetrievalResult:
    return evaluate_retrieval(*embeddings(), bootstrap=200)["all"]


def test_markdown_table(result):
    plain = result.as_dict()
    lines = markdown_table([("clip | 0 %", plain)]).splitlines()
    assert lines[0] == "| method | i2t R@1 | R@5 | R@10 | t2i R@1 | R@5 | R@10 | rsum |"
    cells = lines[2].replace("\\|", "/").strip("| ").split(" | ")
    assert cells[0] == "clip / 0 %"
    for cell, name in zip(cells[1:], (*RECALLS, "rsum"), strict=True):
        low, high = plain["intervals"][name]
        assert cell == f"{plain['metrics'][name]:.1f} ({low:.1f}–{high:.1f})"
    assert lines[-1] == (
        f"all: 50 photos, {result.num_captions} captions; rsum: the six recalls added up, at most 600; "
        "ranges: 95 % bootstrap intervals over photos."
    )
    assert "(" not in markdown_table([("clip", plain)], intervals=False).splitlines()[2]


def test_tables_name_the_protocol_where_rows_differ(result):
    folds = RetrievalResult.from_ranks("coco-1k", result.folds * 5, replicates=0)
    table = markdown_table([("clip", result.as_dict()), ("clip", folds.as_dict())])
    assert table.startswith("| method | protocol |")
    assert "| clip | coco-1k | " in table
    assert "coco-1k: 250 photos" in table
    assert "mean of 5 folds" in table


def test_tables_tell_of_ties():
    with pytest.warns(UserWarning, match="equal scores"):
        tied = evaluate_retrieval(torch.eye(4)[[0, 1, 2, 2]], torch.eye(4)[[0, 1, 2, 2]], torch.arange(4), bootstrap=0)
    assert "lost, they would cost up to 100.00 rsum" in markdown_table([("x", tied["all"].as_dict())])


def test_terminal_table(result, tmp_path):
    with (tmp_path / "out.txt").open("w", encoding="utf-8") as file:
        Console(file=file, width=140).print(terminal_table([("zero-shot", result.as_dict())], title="sample"))
    text = (tmp_path / "out.txt").read_text(encoding="utf-8")
    assert "sample" in text
    assert f"{result.metrics['rsum']:.1f}" in text
    assert "{:.1f}–{:.1f}".format(*result.intervals["rsum"]) in text


def test_write_json_is_whole_or_nothing(tmp_path, result):
    path = tmp_path / "new" / "results.json"
    write_json(path, {"all": result.as_dict()})
    assert json.loads(path.read_text())["all"] == result.as_dict()
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"all": float("nan")})
    assert json.loads(path.read_text())["all"] == result.as_dict()
    assert [file.name for file in path.parent.iterdir()] == ["results.json"]


def test_plot_is_a_picture(tmp_path, result):
    other = evaluate_retrieval(*embeddings(noise=0.5), bootstrap=0)["all"]
    for name, results in (("one", {"clip": result}), ("two", {"clip": result, "better": other})):
        plot_retrieval(results, tmp_path / f"{name}.png", title="recall")
        with Image.open(tmp_path / f"{name}.png") as picture:
            picture.load()
            assert picture.format == "PNG"
            assert picture.width > 1000
            assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 50
    assert sorted(file.name for file in tmp_path.iterdir()) == ["one.png", "two.png"]
    with pytest.raises(ValueError, match="0 results to plot"):
        plot_retrieval({}, tmp_path / "none.png")


def test_rank_bins_hold_every_rank():
    for ranks, shares in (([1, 1, 3, 4, 7], [40, 20, 40]), ([1, 2, 3, 8], [25, 50, 0, 25]), ([1, 1], [100])):
        ranks = np.array(ranks)
        folds = [Ranks(ranks, ranks, ranks, ranks, np.arange(len(ranks)), np.arange(len(ranks)))]
        bins = bins_needed({"x": RetrievalResult.from_ranks("all", folds, replicates=0)})
        assert rank_fractions(ranks, bins).tolist() == shares


def test_plot_without_matplotlib_says_what_to_install(tmp_path, result, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r"clip-itm\[plot\]"):
        plot_retrieval({"clip": result}, tmp_path / "x.png")


@pytest.fixture
def metric(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("evaluate.config.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return evaluate.load(str(METRIC), cache_dir=str(tmp_path / "cache"))


def test_metric_of_the_evaluate_library(metric):
    images, texts, owner = embeddings()
    images, texts = (torch.nn.functional.normalize(x, dim=-1) for x in (images, texts))
    expected = evaluate_retrieval(images, texts, owner, bootstrap=50, seed=3)["all"]
    scores = metric.compute(predictions=7 * texts, references=owner, image_embeddings=5 * images, bootstrap=50, seed=3)
    for name, value in expected.metrics.items():
        assert scores[name] == pytest.approx(value), name
    assert scores["intervals"]["rsum"] == pytest.approx(expected.intervals["rsum"])

    for part in torch.arange(len(texts)).split(30):
        metric.add_batch(predictions=texts[part].numpy(), references=owner[part].numpy())
    in_batches = metric.compute(image_embeddings=images.numpy())
    assert {name: in_batches[name] for name in expected.metrics} == pytest.approx(expected.metrics)
    assert "intervals" not in in_batches


def test_metric_without_photos_says_so(metric):
    _, texts, owner = embeddings()
    with pytest.raises(ValueError, match="image_embeddings is missing"):
        metric.compute(predictions=texts, references=owner)
