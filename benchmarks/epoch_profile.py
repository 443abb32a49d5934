"""Where the time of an epoch goes: the run of `benchmarks/train.py`, photos as they are, under torch's profiler.

    python benchmarks/epoch_profile.py                 about two minutes on one core

A first epoch, which reads its photos, and a second one, in which pixels are kept. A row is an operation with its own
time (without those that it calls), as a share of the epoch; what is in no operation is Python. Backward passes have
operations of their own. "Reading" is all that makes a batch: photos decoded, resized and cropped, captions looked up.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile, record_function
from train_rows import RATE, Data
from transformers import TrainerCallback

from clip_itm import ItmTrainer
from clip_itm.allocator import keep_freed_memory
from clip_itm.data.batches import PairDataset
from clip_itm.files import write_json

READING = "reading"


class Profiled(TrainerCallback):
    """Milliseconds of each operation's own time, of every epoch."""

    def __init__(self):
        self.epochs: list[dict[str, float]] = []

    def on_epoch_begin(self, *_, **__):
        self.profiler, self.began = profile(activities=[ProfilerActivity.CPU]), time.perf_counter()
        self.profiler.start()

    def on_epoch_end(self, *_, **__):
        whole = time.perf_counter() - self.began
        self.profiler.stop()
        found = self.profiler.key_averages()
        # the operations of reading are part of it; for all others their own time counts
        times = {each.key: each.self_cpu_time_total / 1e3 for each in found if each.key != READING}
        reading = next((each.cpu_time_total / 1e3 for each in found if each.key == READING), 0.0)
        self.epochs.append({"epoch": 1e3 * whole, READING: reading, **times})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(os.environ.get("CLIP_ITM_REAL_DATA", "../shared/data"))
    parser.add_argument("--coco", type=Path, default=shared / "coco_mini", help="folder of val2017 and annotations")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/epoch_profile.json"))
    args = parser.parse_args()
    keep_freed_memory()  # as the command line does
    torch.set_num_threads(1)
    make_batch = PairDataset.__getitems__

    def recorded(*arguments):
        with record_function(READING):
            return make_batch(*arguments)

    PairDataset.__getitems__ = recorded
    profiled = Profiled()
    with tempfile.TemporaryDirectory() as folder:
        data = Data(args.coco.absolute(), Path(folder))
        section = {"source": "folder", "root": "/", "captions": str(data.write_jsonl()), "num_workers": 0}
        ItmTrainer(
            {"kind": "open_clip", "model": str(data.write_architecture())},
            section | {"cache_dir": str(data.work / "cache")},
            output_dir=data.work / "run",
            callbacks=[profiled],
            report_to="none",
            evaluation={"bootstrap": 0},
            epochs=2,
            batch_size=args.batch,
            learning_rate=RATE,
        ).train()
    table = Table(title="shares of an epoch, in percent")
    for name in ("", "first epoch", "second epoch"):
        table.add_column(name, justify="right" if name else "left")
    shares = [
        {name: 100 * value / each["epoch"] for name, value in each.items() if name != "epoch"}
        for each in profiled.epochs
    ]
    largest = sorted(set().union(*shares), key=lambda name: -max(each.get(name, 0.0) for each in shares))
    for name in largest[: args.rows]:
        table.add_row(name, *(f"{each.get(name, 0.0):.1f}" for each in shares))
    Console().print(table)
    print("seconds:", ", ".join(f"{each['epoch'] / 1e3:.1f}" for each in profiled.epochs))
    write_json(args.out, profiled.epochs)


if __name__ == "__main__":
    main()
