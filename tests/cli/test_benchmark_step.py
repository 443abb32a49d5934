"""The benchmark of optimiser steps: it runs, and the passes that it counts are those that the steps make."""

import importlib.util
import json
import sys
from collections import Counter

import pytest

from clip_itm.backbones.configuration import OpenClipBackbone
from clip_itm.model import ItmModel
from support.paths import ROOT
from support.tiny import TINY_CLIP

FILE = ROOT / "benchmarks" / "step.py"
TOY = {**TINY_CLIP, "text_cfg": {**TINY_CLIP["text_cfg"], "vocab_size": 256}}


def load_benchmark():
    spec = importlib.util.spec_from_file_location("benchmark_step", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


benchmark = load_benchmark()


def count_rows(model: ItmModel, name: str, monkeypatch) -> Counter:
    """Rows that the method `name` of `model` encodes, and rows that a gradient comes back to, from now on."""
    rows, encode = Counter(), getattr(model, name)

    def counting(*args, **kwargs):
        features = encode(*args, **kwargs)
        rows["forwards"] += len(features.pooled)
        if features.pooled.requires_grad:
            features.pooled.register_hook(lambda gradient: rows.update(backwards=len(gradient)))
        return features

    monkeypatch.setattr(model, name, counting)
    return rows


@pytest.mark.parametrize("method", benchmark.METHODS, ids=lambda method: method.name)
def test_counted_passes_are_those_of_the_step(method, monkeypatch):
    size = 8
    model = ItmModel.from_backbone(OpenClipBackbone(model="toy", model_config_dict={"model_cfg": TOY}))
    pairs = benchmark.RandomPairs(3 * size, TOY)
    step = benchmark.Steps(model, method, benchmark.make_batch(pairs, size, method))
    step()  # the first step of npc also compares the modes of the model
    counts = [count_rows(model, name, monkeypatch) for name in ("features_of_images", "features_of_captions")]
    seconds, adamw = step()
    for rows in counts:
        assert rows == {"forwards": method.forwards * size, "backwards": method.backwards * size}
    assert 0 < adamw < seconds


@pytest.mark.slow
def test_it_writes_all_figures(tmp_path, monkeypatch, capsys):
    (tmp_path / "toy.json").write_text(json.dumps(TOY))
    words = ["--model", str(tmp_path / "toy.json"), "--batch", "4", "--rounds", "1", "--steps", "2"]
    monkeypatch.setattr(sys, "argv", ["step.py", *words, "--json", str(tmp_path / "step.json")])
    monkeypatch.setattr(benchmark, "keep_freed_memory", lambda: None)  # not for the other tests of this process
    monkeypatch.setattr(benchmark.torch, "set_num_threads", lambda number: None)
    benchmark.main()
    report = json.loads((tmp_path / "step.json").read_text())
    rows = {row["name"]: row for row in report["methods"]}
    assert [row["units"] for row in report["methods"]] == [3, 3, 3, 3, 3, 13, 9.5, 16, 9, 9, 9]
    assert rows["clip"]["ratio"] == rows["clip"]["ratio_without_adamw"] == 1
    assert all(len(row["all_seconds"]) == 2 and row["peak_gigabytes"] is None for row in rows.values())
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("9.5 F", "npc as published", "float32"))
