"""Peak memory of a step against the batch, with and without the gradient cache: small towers on the CPU.

    python benchmarks/memory.py                          1,024 to 32,768 pairs, chunks of 256, about ten minutes
    python benchmarks/memory.py --sizes 1024 4096        some of them

A column is a process of its own, which goes from the smallest batch to the largest. A figure is the largest resident
memory until its step has ended, without what was resident before the first one (libraries, weights). glibc is told to
give freed memory back, or what it keeps for later would be measured (`RETURNED`); steps take longer so. One step is
forward and backward of the plain head on photos of 16 x 16 and captions of 8 tokens in float32. With the cache, what
still grows with the batch are its inputs, its embeddings and a block of its scores (`methods/scores.py`).
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from clip_itm.backbones.configuration import OpenClipBackbone
from clip_itm.configuration import ItmConfig
from clip_itm.files import write_json
from clip_itm.model import ItmModel
from clip_itm.training.gradient_cache import Chunks, encoding_in_chunks

SIZES = (1024, 2048, 4096, 8192, 16384, 32768)
SMALL = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32},
    "text_cfg": {"context_length": 8, "vocab_size": 100, "width": 64, "heads": 2, "layers": 2},
}
MB = 2**20
RETURNED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def make_model() -> ItmModel:
    torch.manual_seed(0)
    section = OpenClipBackbone(model="small", model_config_dict={"model_cfg": SMALL}, special_token_ids=(0, 99))
    return ItmModel(ItmConfig(backbone=section.model_dump(mode="json"), head={"kind": "clip"})).train()


def step(model: ItmModel, pairs: int, chunk: int | None) -> float:
    """Seconds of one step."""
    captions, numbers = torch.randint(1, 98, (pairs, 8)), torch.arange(pairs)
    captions[:, -1] = 99
    inputs = {"pixel_values": torch.randn(pairs, 3, 16, 16), "input_ids": captions, "image_index": numbers}
    inputs |= {"attention_mask": torch.ones_like(captions), "image_ids": numbers, "pair_ids": numbers}
    began = time.perf_counter()
    with encoding_in_chunks(model, None if chunk is None else Chunks(chunk)):
        model(**inputs).loss.backward()
    return time.perf_counter() - began


def column(sizes: list[int], chunk: int | None) -> None:
    """One line of JSON for every size."""
    model = make_model()
    step(model, 16, 8)  # what the first step of a process takes, whatever its batch
    before = resident()
    for pairs in sizes:
        seconds = step(model, pairs, chunk)
        print(json.dumps({"pairs": pairs, "megabytes": (peak() - before) / MB, "seconds": seconds}), flush=True)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="pairs of a batch")
    parser.add_argument("--chunk", type=int, default=256)
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    parser.add_argument("--of", type=int, help=argparse.SUPPRESS)  # the process of a column: its chunk, or 0
    args = parser.parse_args()
    sizes = sorted(args.sizes)
    if args.of is not None:
        column(sizes, args.of or None)
        return
    columns: list[dict[int, dict]] = []
    for chunk in (0, args.chunk):
        words = [sys.executable, __file__, "--of", str(chunk), "--sizes", *map(str, sizes)]
        # it is killed if memory runs out
        done = subprocess.run(words, env=os.environ | RETURNED, stdout=subprocess.PIPE, text=True)
        columns.append({found["pairs"]: found for found in map(json.loads, done.stdout.splitlines())})
    table = Table(title=f"one step; chunks of {args.chunk}")
    for name in ("pairs", "MB", "MB, cached", "seconds", "seconds, cached"):
        table.add_column(name, justify="right")
    for pairs in sizes:
        row = [each.get(pairs) for each in columns]
        cells = ["-" if found is None else f"{found[key]:,.1f}" for key in ("megabytes", "seconds") for found in row]
        table.add_row(f"{pairs:,}", *cells)
    Console().print(table)
    if args.json is not None:
        write_json(args.json, {"chunk": args.chunk, "plain": columns[0], "cached": columns[1]})


if __name__ == "__main__":
    main()
