"""Ranks of 5,000 photos x 25,000 captions x 512, against the bare matrix product of the same run.

    python benchmarks/evaluation.py

Prints a table and writes runs/benchmarks/evaluation.json; exit status 1 if a target is missed: at most 1.5 times one
bare product, at most 300 MB beyond the embeddings. The work is done in a fresh process, whose peak memory is that of
the ranks. The argsort loop starts thousands of small operations and suffers most from other work on the machine.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from clip_itm.evaluation.ranking import BLOCK_BYTES, compute_ranks
from clip_itm.files import write_json

TARGET_RATIO, TARGET_MEGABYTES = 1.5, 300
SORTED_STEP = 20


def embeddings(photos: int, captions_each: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random unit vectors; every caption is near its photo."""
    generator = torch.Generator().manual_seed(0)
    owner = torch.arange(photos).repeat_interleave(captions_each)
    images = torch.randn(photos, width, generator=generator)
    texts = torch.randn(len(owner), width, generator=generator).mul_(1.8).add_(images[owner])
    return images.div_(images.norm(dim=1, keepdim=True)), texts.div_(texts.norm(dim=1, keepdim=True)), owner


def product(images: torch.Tensor, texts: torch.Tensor) -> None:
    images @ texts.T


def product_in_blocks(images: torch.Tensor, texts: torch.Tensor) -> None:
    """The same product in blocks of photos, as large as the blocks of the ranks."""
    for block in images.split(max(1, BLOCK_BYTES // (4 * len(texts)))):
        block @ texts.T


def argsort_loop(
    images: torch.Tensor, texts: torch.Tensor, owner: torch.Tensor, step: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """One query at a time, sorted: the usual evaluation loop (ties fall as the sort likes). Every `step`-th query."""
    image_ranks = [
        (owner[(images[photo] @ texts.T).argsort(descending=True)] == photo).nonzero()[0] + 1
        for photo in range(0, len(images), step)
    ]
    text_ranks = [
        ((images @ texts[caption]).argsort(descending=True) == owner[caption]).nonzero()[0] + 1
        for caption in range(0, len(texts), step)
    ]
    return torch.cat(image_ranks), torch.cat(text_ranks)


def seconds(function, *arguments) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def memory_megabytes(field: str) -> float:
    """VmRSS (now) or VmHWM (peak) of this process, from /proc (Linux)."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024 / 1e6
    raise ValueError(f"/proc/self/status has no {field}")


def measure(sizes: tuple[int, int, int], repeats: int) -> dict:
    torch.eye(8) @ torch.eye(8)  # the library's own buffers are not ours
    images, texts, owner = embeddings(*sizes)
    before = memory_megabytes("VmRSS")
    ranks = compute_ranks(images, texts, owner)
    extra = memory_megabytes("VmHWM") - before

    times = {"one product": [], "product in blocks": [], "ranks": []}
    for _ in range(repeats):  # interleaved, so that other work on the machine affects all alike
        times["one product"].append(seconds(product, images, texts))
        times["product in blocks"].append(seconds(product_in_blocks, images, texts))
        times["ranks"].append(seconds(compute_ranks, images, texts, owner))
    medians = {name: statistics.median(values) for name, values in times.items()}

    start = time.perf_counter()
    image_ranks, text_ranks = argsort_loop(images, texts, owner, SORTED_STEP)
    medians[f"argsort loop (1 query in {SORTED_STEP}, scaled)"] = SORTED_STEP * (time.perf_counter() - start)
    sorted_ranks = torch.cat([image_ranks, text_ranks])
    counted_ranks = [torch.from_numpy(r[::SORTED_STEP]) for r in (ranks.image_to_text, ranks.text_to_image)]
    return {
        "photos": sizes[0],
        "captions": len(texts),
        "width": sizes[2],
        "seconds": medians,
        "all_seconds": times,
        "ratio": medians["ranks"] / medians["one product"],
        "extra_megabytes": extra,
        "ranked_as_by_argsort": float((sorted_ranks == torch.cat(counted_ranks)).float().mean()),
        "machine": {
            "threads": torch.get_num_threads(),
            "processor": platform.processor() or platform.machine(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=5000)
    parser.add_argument("--captions", type=int, default=5, help="captions per photo")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", default="runs/benchmarks/evaluation.json")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure((args.photos, args.captions, args.width), args.repeats)))
        return

    child = subprocess.run([sys.executable, *sys.argv, "--child"], stdout=subprocess.PIPE, text=True, check=True)
    report = json.loads(child.stdout)
    write_json(Path(args.output), report)

    machine, times = report["machine"], report["seconds"]
    table = Table(title=f"{report['photos']:,} photos x {report['captions']:,} captions x {report['width']}")
    for header in ("", "seconds (median)", "x one product"):
        table.add_column(header, justify="left" if not header else "right")
    for name, value in times.items():
        table.add_row(name, f"{value:.2f}", f"{value / times['one product']:.2f}")
    console = Console()
    console.print(table)
    console.print(f"{machine['threads']} threads, {machine['processor']}, torch {machine['torch']}", highlight=False)
    met = report["ratio"] <= TARGET_RATIO and report["extra_megabytes"] <= TARGET_MEGABYTES
    console.print(
        f"ranks: {report['ratio']:.2f} x one product (target {TARGET_RATIO:g}), {report['extra_megabytes']:.0f} MB "
        f"beyond the embeddings (target {TARGET_MEGABYTES}): {'met' if met else 'MISSED'}; "
        f"{100 * report['ranked_as_by_argsort']:.2f} % of the sorted queries ranked as by argsort",
        highlight=False,
        soft_wrap=True,
    )
    console.print(f"written to {args.output}", highlight=False)
    raise SystemExit(0 if met else 1)


if __name__ == "__main__":
    main()
