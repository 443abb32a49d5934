"""The benchmark of an epoch: what its clock counts, and the table that it makes of it."""

import importlib.util
import time

import pytest
from torch.utils.data import DataLoader

from support.paths import ROOT

FILE = ROOT / "benchmarks" / "train.py"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.setattr(DataLoader, "__iter__", DataLoader.__iter__)  # the clock puts its own in place
    monkeypatch.syspath_prepend(FILE.parent)
    spec = importlib.util.spec_from_file_location("benchmark_train", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Slow:
    def __len__(self):
        return 3

    def __getitem__(self, index):
        time.sleep(0.02)
        return index


def test_the_clock_counts_what_a_loader_takes(benchmark):
    clock = benchmark.Clock()
    clock.begin()
    assert [int(batch) for batch in DataLoader(Slow())] == [0, 1, 2]
    clock.end()
    clock.begin()
    clock.end()
    first, second = clock.epochs
    assert 0.06 / first["wall"] - 1e-6 <= first["waiting"] <= 1
    assert second["waiting"] == 0
    assert first["processor"] >= 0


def test_medians_of_all_rounds_are_shown(benchmark, capsys):
    def run(processor: float, peak: float) -> dict:
        epochs = [{"processor": processor + more, "wall": 2 * processor, "waiting": 0.25} for more in (0, 1)]
        return {"epochs": epochs, "peak_megabytes": peak, "captions": 768, "photos": 159}

    rows = {"bare": benchmark.summary([run(4, 10)]), "raw": benchmark.summary([run(7, 10), run(9, 30)])}
    assert rows["raw"]["processor"] == 8.5
    assert (rows["raw"]["fastest"], rows["raw"]["peak_megabytes"]) == (7, 30)
    machine = {"processor": "x", "torch": "0"}
    left_out = {"sentence-transformers": "sentence_transformers is not installed"}
    benchmark.show({"rows": rows, "left_out": left_out, "batch": 64, "workers": 0, "machine": machine})
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("1.89", "25 %", "768 captions", "is not installed"))
