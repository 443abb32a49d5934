"""An epoch of training, compared with other programs: the same towers, photos of original size, batch and workers.

    python benchmarks/train.py                         about ten minutes on one core
    python benchmarks/train.py --only raw cached bare  some of the rows

- bare loop: open_clip's towers, loss and AdamW in ten lines, on the photos and 77 tokens of every pair as tensors in
  memory; nothing is read. `bare, channels_last` has pixels and weights in that layout; `bare, our batches` gets what a
  `PairDataset` makes: a photo once per batch, captions trimmed.
- raw, cached: `clip_itm.train`, from files as they are, or with `data.cache_images`; `raw, compiled` with
  `training.compile`.
- open_clip_train: open_clip's own program on a CSV; packages that it needs only for shards are mocked if missing.
- sentence-transformers: its trainer with a CLIP of transformers of the same sizes, if it is installed.

Every row is a process of its own. Epochs count from the second one on, without evaluation and checkpoints; rounds
alternate, and medians of epochs count. Processor time is that of the process, its threads and its loader processes:
other work on the machine hardly affects it. Rates are per second of it. "Waiting" is the share of the wall time that
the loop spent in the `next` of its loader, for every program alike.
"""

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from train_rows import (
    ARCHITECTURE,
    Clock,
    Data,
    bare,
    bare_with_our_batches,
    open_clip_train,
    ours,
    peak_megabytes,
    sentence_transformers,
)

NAMES = (
    *("bare", "bare, channels_last", "bare, our batches", "cached", "raw", "raw, compiled"),
    *("open_clip_train", "sentence-transformers"),
)


def run_one(name: str, args: argparse.Namespace) -> dict:
    """The epochs of one row, in this process."""
    from clip_itm.allocator import keep_freed_memory

    if name not in ("open_clip_train", "sentence-transformers"):
        keep_freed_memory()  # as our command line does; without it the bare loop would be no floor
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        data, clock = Data(args.coco.absolute(), Path(folder)), Clock()
        match name:
            case "bare" | "bare, channels_last":
                bare(data, clock, args, torch.contiguous_format if name == "bare" else torch.channels_last)
            case "bare, our batches":
                bare_with_our_batches(data, clock, args)
            case "open_clip_train":
                open_clip_train(data, clock, args)
            case "sentence-transformers":
                sentence_transformers(data, clock, args)
            case _:
                ours(data, clock, args, cached=name == "cached", compiled=name == "raw, compiled")
        return {
            "epochs": clock.epochs[1:],
            "peak_megabytes": peak_megabytes(),
            "captions": len(data.pairs) // args.batch * args.batch,
            "photos": len(data.captions),
        }


def is_there(name: str) -> str | None:
    """Why a row cannot be measured here, or None."""
    package = {"open_clip_train": "open_clip_train", "sentence-transformers": "sentence_transformers"}.get(name)
    return f"{package} is not installed" if package and importlib.util.find_spec(package) is None else None


def measure(args: argparse.Namespace) -> dict:
    found: dict[str, list[dict]] = {name: [] for name in args.only if is_there(name) is None}
    for _ in range(args.rounds):
        for name, runs in found.items():
            words = [sys.executable, __file__, *sys.argv[1:], "--child", name]
            child = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
            runs.append(json.loads(child.stdout.splitlines()[-1]))
    return {
        "rows": {name: summary(runs) for name, runs in found.items()},
        "left_out": {name: why for name in args.only if (why := is_there(name)) is not None},
        "batch": args.batch,
        "workers": args.workers,
        "architecture": ARCHITECTURE,
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def summary(runs: list[dict]) -> dict:
    epochs = [epoch for run in runs for epoch in run["epochs"]]
    medians = {name: statistics.median(epoch[name] for epoch in epochs) for name in ("processor", "wall", "waiting")}
    return {
        **medians,
        "fastest": min(epoch["processor"] for epoch in epochs),
        "captions_per_second": runs[0]["captions"] / medians["processor"],
        "peak_megabytes": max(run["peak_megabytes"] for run in runs),
        "photos": runs[0]["photos"],
        "captions": runs[0]["captions"],
        "epochs": epochs,
    }


def show(report: dict) -> None:
    rows = report["rows"]
    first = next(iter(rows.values()))
    table = Table(title=f"{first['photos']} photos, {first['captions']} captions an epoch, batch {report['batch']}")
    for header in ("", "processor s", "fastest", "x bare", "wall s", "captions/s", "waiting", "peak MB"):
        table.add_column(header, justify="right" if header else "left")
    for name, row in rows.items():
        table.add_row(
            name,
            f"{row['processor']:.1f}",
            f"{row['fastest']:.1f}",
            f"{row['processor'] / rows['bare']['processor']:.2f}" if "bare" in rows else "",
            f"{row['wall']:.1f}",
            f"{row['captions_per_second']:.1f}",
            f"{100 * row['waiting']:.0f} %",
            f"{row['peak_megabytes']:.0f}",
        )
    console, machine = Console(), report["machine"]
    console.print(table)
    for name, why in report["left_out"].items():
        console.print(f"{name}: left out, {why}", highlight=False)
    console.print(
        f"{report['workers']} loader processes, one thread, {machine['processor']}, torch {machine['torch']}",
        highlight=False,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(os.environ.get("CLIP_ITM_REAL_DATA", "../shared/data"))
    parser.add_argument("--coco", type=Path, default=shared / "coco_mini", help="folder of val2017 and annotations")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="ROW", help=", ".join(NAMES))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=0, help="loader processes")
    parser.add_argument("--epochs", type=int, default=3, help="the first one does not count")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/train.json"))
    parser.add_argument("--child", choices=NAMES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(run_one(args.child, args)))
        return
    from clip_itm.files import write_json

    report = measure(args)
    show(report)
    write_json(args.out, report)
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
