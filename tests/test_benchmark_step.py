"""The benchmark of optimiser steps: it runs, and the passes that it counts are those that the steps make."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from tiny import TINY_CLIP

from clip_itm.backbones.configuration import OpenClipBackbone
from clip_itm.model import ItmModel

FILE = Path(__file__).parents[1] / "benchmarks" / "step.py"


def load_benchmark():
    spec = importlib.util.spec_from_file_location("benchmark_step", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


benchmark = load_benchmark()


@pytest.mark.parametrize("method", benchmark.METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("side", ["images", "texts"])
def test_counted_passes_are_those_of_the_step(method, side, monkeypatch):
    size, rows = 8, {"forward": 0, "backward": 0}
    model = ItmModel.from_backbone(OpenClipBackbone(model="tiny", model_config_dict={"model_cfg": TINY_CLIP}))
    pairs = benchmark.RandomPairs(3 * size, TINY_CLIP)
    step = benchmark.Steps(model, method, benchmark.make_batch(pairs, size, method))
    step()  # the first one also finds out what the modes of the model have in common

    own_encode = getattr(model, f"encode_{side}")

    def encode(*args, **kwargs):
        embeddings = own_encode(*args, **kwargs)
        rows["forward"] += len(embeddings)
        if embeddings.requires_grad:
            embeddings.register_hook(lambda gradient: rows.update(backward=rows["backward"] + len(gradient)))
        return embeddings

    monkeypatch.setattr(model, f"encode_{side}", encode)
    seconds, adamw = step()
    assert (rows["forward"] / size, rows["backward"] / size) == (method.forwards, method.backwards)
    assert 0 < adamw < seconds


def test_it_writes_all_figures(tmp_path, monkeypatch, capsys):
    (tmp_path / "tiny.json").write_text(json.dumps(TINY_CLIP))
    words = ["--model", str(tmp_path / "tiny.json"), "--batch", "4", "--rounds", "2", "--steps", "1"]
    monkeypatch.setattr(sys, "argv", ["step.py", *words, "--json", str(tmp_path / "step.json")])
    monkeypatch.setattr(benchmark, "keep_freed_memory", lambda: None)  # not for the other tests of this process
    monkeypatch.setattr(benchmark.torch, "set_num_threads", lambda number: None)
    benchmark.main()
    report = json.loads((tmp_path / "step.json").read_text())
    rows = {row["name"]: row for row in report["methods"]}
    assert [row["units"] for row in report["methods"]] == [3, 3, 13, 9.5, 16, 9, 9, 9]
    assert rows["clip"]["ratio"] == rows["clip"]["ratio_without_adamw"] == 1
    assert all(len(row["all_seconds"]) == 2 and row["peak_gigabytes"] is None for row in rows.values())
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("9.5 F", "npc as published", "float32"))
