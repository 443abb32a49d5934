"""What every head and similarity costs by itself: one training step and one evaluation on random features.

    python benchmarks/heads.py                   one core in float32; attention over 5,000,000 pairs takes its time
    python benchmarks/heads.py --device cuda
    python benchmarks/heads.py --parts step polyloss --photos 200

Features stand for a backbone: pooled vectors, and tokens if a head reads them, of the widths given; their gradient is
part of a step, as it would flow on into the towers. A step is outputs, loss, backward and AdamW of what the head
learns, the median of several; an evaluation embeds features and ranks 1,000 photos against 5,000 captions. NPC's own
steps are in benchmarks/step.py: here is only its loss. AAHR has all its terms on and a full queue, its keys included.

Also: PolyLoss of one batch, forward and backward, against a loop over samples, and the ranks of 5,000 x 25,000 sets
of 4 by smooth-Chamfer. Each case runs in a process of its own. Memory is the peak beyond features (or sets); on the
CPU, where the clock is the processor time of one thread, that of the process. Prints tables and writes
runs/benchmarks/heads.json (or --json FILE).
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Table
from torch import Tensor

from clip_itm.allocator import keep_freed_memory
from clip_itm.backbones.features import Features, FeatureWidths
from clip_itm.evaluation.ranking import compute_ranks
from clip_itm.files import write_json
from clip_itm.methods.aahr.criterion import Gates
from clip_itm.methods.base import Head
from clip_itm.methods.build import build_head
from clip_itm.methods.configuration import HeadConfig
from clip_itm.methods.crcl.labels import LabelStore, Phase
from clip_itm.methods.dive.configuration import SmoothChamferSection
from clip_itm.methods.dive.set_similarity import SetSimilarity
from clip_itm.methods.polyloss.loss import SATURATED, Weighting, polynomial, polynomial_losses

HEADS = {
    "clip": {"kind": "clip"},
    "npc, its loss": {"kind": "npc"},
    "crcl": {"kind": "crcl"},
    "polyloss": {"kind": "polyloss"},
    "triplet": {"kind": "triplet"},
    "siglip": {"kind": "siglip"},
    "robust": {"kind": "robust"},
    "dive": {"kind": "dive"},
    "aahr": {"kind": "aahr"},
    "triplet, scan": {"kind": "triplet", "similarity": {"kind": "scan"}},
    "triplet, saf": {"kind": "triplet", "similarity": {"kind": "saf"}},
    "triplet, sgr": {"kind": "triplet", "similarity": {"kind": "sgr"}},
}
SETS = (5000, 25_000, 4)  # photos, captions, elements of each
AT_ONCE = 250  # items embedded at a time in evaluation
Results = dict[str, dict | None]


def random_features(count: int, tokens: int, args: argparse.Namespace, seed: int) -> Features:
    generator = torch.Generator().manual_seed(seed)
    pooled = torch.randn(count, args.width, generator=generator)
    return Features(pooled.to(args.device), torch.randn(count, tokens, args.width, generator=generator).to(args.device))


def part_of(features: Features, rows: slice, needs_tokens: bool) -> Features:
    tokens = features.tokens[rows] if needs_tokens else None
    mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device) if needs_tokens else None
    return Features(features.pooled[rows], tokens, mask)


def make_head(name: str, args: argparse.Namespace) -> Head:
    section = HEADS[name]
    if section.get("similarity", {}).get("kind") in ("saf", "sgr"):
        section = {**section, "similarity": {**section["similarity"], "regions": args.regions}}
    config = TypeAdapter(HeadConfig).validate_python(section)
    torch.manual_seed(0)
    return build_head(config, FeatureWidths(args.width, args.width, args.width)).to(args.device)


def prepare(head: Head, ids: Tensor, keys: Callable[[], tuple[Tensor, Tensor]]) -> None:
    """What trainers give to a head: labels for CRCL; for AAHR open gates and a full queue."""
    match head.config.kind:
        case "crcl":
            head.labels = LabelStore(len(ids))
            head.phase = Phase(piece=0, epoch_in_piece=2, frozen=False, replaces=False)
        case "aahr":
            head.criterion.gates = Gates(prototypes=0, graph=0)
            written = keys()
            while not head.criterion.queue.is_full:
                head.criterion.end_step(written, ids)


def measure_step(name: str, args: argparse.Namespace) -> dict:
    head, ids = make_head(name, args).train(), torch.arange(args.batch, device=args.device)
    features = [
        random_features(args.batch, tokens, args, seed) for seed, tokens in enumerate((args.regions, args.words))
    ]
    images, texts = (part_of(each, slice(None), head.needs_tokens) for each in features)
    leaves = [x.requires_grad_() for each in (images, texts) for x in (each.pooled, each.tokens) if x is not None]

    @torch.no_grad()
    def keys() -> tuple[Tensor, Tensor]:
        return head.embed_images(images), head.embed_texts(texts)

    prepare(head, ids, keys)
    learned = list(head.parameters())
    optimizer = torch.optim.AdamW(learned, lr=1e-6) if learned else None

    def step() -> None:
        if head.config.kind == "aahr":
            head.keys = keys()
        loss, _ = head.loss(head.image_outputs(images), head.text_outputs(texts), ids, ids)
        loss.backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()
        for leaf in leaves:
            leaf.grad = None

    return measured(step, args, args.rounds) | {"parameters": sum(parameter.numel() for parameter in learned)}


def measure_evaluation(name: str, args: argparse.Namespace) -> dict:
    head = make_head(name, args).eval()
    photos, captions = args.images, 5 * args.images
    images, texts = random_features(photos, args.regions, args, 0), random_features(captions, args.words, args, 1)
    owner = torch.arange(captions) // 5

    @torch.inference_mode()
    def evaluate() -> None:
        embeddings = [
            torch.cat(
                [
                    embed(part_of(features, slice(start, start + AT_ONCE), head.needs_tokens))
                    for start in range(0, len(features.pooled), AT_ONCE)
                ]
            )
            for embed, features in ((head.embed_images, images), (head.embed_texts, texts))
        ]
        compute_ranks(*embeddings, owner, head.similarity)

    return measured(evaluate, args)


def loop_over_samples(scores: Tensor, margin: float, weighting: Weighting) -> Tensor:
    """PolyLoss as published programs compute it, a sample at a time, both directions (docs/papers/polyloss.md 3.3)."""
    total = scores.new_zeros(())
    for direction in (scores, scores.T):
        for k in range(len(direction)):
            positive = direction[k, k]
            negatives = torch.cat([direction[k, :k], direction[k, k + 1 :]])
            negatives = negatives[negatives + margin > positive]
            if positive < SATURATED and len(negatives):
                total = total + polynomial(positive, weighting.positive).relu()
                total = total + polynomial(negatives.max(), weighting.negative).relu()
    return total / len(scores)


def matrix_loss(scores: Tensor, margin: float, weighting: Weighting) -> Tensor:
    own, targets = torch.eye(len(scores), dtype=torch.bool, device=scores.device), torch.arange(len(scores))
    both = [
        polynomial_losses(direction, targets.to(scores.device), own, margin, weighting).losses
        for direction in (scores, scores.T)
    ]
    return (both[0] + both[1]).mean()


def measure_polyloss(name: str, args: argparse.Namespace) -> dict:
    loss = {"loop over samples": loop_over_samples, "matrix": matrix_loss}[name]
    generator = torch.Generator().manual_seed(0)
    scores = 0.3 + 0.2 * torch.randn(args.batch, args.batch, generator=generator)
    scores = scores.to(args.device).requires_grad_()

    def step() -> None:
        scores.grad = None
        loss(scores, 0.2, Weighting()).backward()

    found = measured(step, args, max(5, args.rounds))
    value = loss(scores, 0.2, Weighting()).item()
    return found | {"loss": value, "gradient_norm": scores.grad.norm().item()}


def measure_sets(_: str, args: argparse.Namespace) -> dict:
    photos, captions, elements = SETS
    similarity = SetSimilarity(SmoothChamferSection(), torch.nn.Identity(), torch.nn.Identity())
    generator = torch.Generator().manual_seed(0)
    images, texts = (
        torch.nn.functional.normalize(torch.randn(count, elements, args.width, generator=generator), dim=-1)
        for count in (photos, captions)
    )
    images, texts = images.to(args.device), texts.to(args.device)
    owner = torch.arange(captions) * photos // captions
    found = measured(lambda: compute_ranks(images, texts, owner, similarity), args)
    return found | {"sets_megabytes": 4 * (images.numel() + texts.numel()) / 1e6}


def measured(function: Callable[[], None], args: argparse.Namespace, repeats: int = 1) -> dict:
    """Median seconds of the calls, and peak megabytes beyond what was there before them.

    Several calls are preceded by one more, whose memory counts.
    """
    on_gpu = args.device == "cuda"
    clock = time.perf_counter if on_gpu else time.process_time
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak starts anew (Linux)
        before = memory("VmRSS")
    if repeats > 1:
        function()
    times = []
    for _ in range(repeats):
        start = clock()
        function()
        if on_gpu:
            torch.cuda.synchronize()
        times.append(clock() - start)
    peak = torch.cuda.max_memory_allocated() if on_gpu else memory("VmHWM")
    return {"seconds": statistics.median(times), "megabytes": (peak - before) / 1e6, "all_seconds": times}


def memory(field: str) -> int:
    """Bytes that this process holds (VmRSS), or held at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


PARTS = {
    "step": (measure_step, HEADS),
    "evaluation": (measure_evaluation, HEADS),
    "polyloss": (measure_polyloss, ("loop over samples", "matrix")),
    "sets": (measure_sets, ("smooth-Chamfer",)),
}


def run(part: str, args: argparse.Namespace) -> Results:
    """All cases of a part, each in a fresh process; None for one that did not end in time."""
    results = {}
    for name in PARTS[part][1]:
        if part in ("step", "evaluation") and name not in args.heads:
            continue
        command = [sys.executable, __file__, *sys.argv[1:], "--case", part, name]
        try:
            child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=args.time_limit)
            results[name] = json.loads(child.stdout)
        except subprocess.TimeoutExpired:
            results[name] = None
        print(f"{part}, {name}: {results[name]}", file=sys.stderr, flush=True)
    return results


def show(report: dict, args: argparse.Namespace, console: Console) -> None:
    table = Table(title=f"random features, {args.width} wide, {args.regions} regions, {args.words} words")
    for header in ("", "weights", f"step of {args.batch}, ms", "MB", f"{args.images:,} x {5 * args.images:,}, s", "MB"):
        table.add_column(header, justify="right" if header else "left")
    late = f"> {args.time_limit:g} s"
    steps, evaluations = report.get("step", {}), report.get("evaluation", {})
    for name in HEADS:
        if name not in steps | evaluations:
            continue
        cells = ["-"] * 5
        if (found := steps.get(name)) is not None:
            weights = f"{found['parameters'] / 1e6:.2f} M"
            cells[:3] = [weights, f"{1000 * found['seconds']:.1f}", f"{found['megabytes']:.0f}"]
        elif name in steps:
            cells[1] = late
        if (found := evaluations.get(name)) is not None:
            cells[3:] = [f"{found['seconds']:.2f}", f"{found['megabytes']:.0f}"]
        elif name in evaluations:
            cells[3] = late
        table.add_row(name, *cells)
    if table.row_count:
        console.print(table)
    if (found := report.get("polyloss")) and all(found.values()):
        loop, matrix = found["loop over samples"], found["matrix"]
        console.print(
            f"PolyLoss of {args.batch} pairs: loop {1000 * loop['seconds']:.1f} ms, matrix "
            f"{1000 * matrix['seconds']:.3f} ms, {loop['seconds'] / matrix['seconds']:.0f} times faster; loss "
            f"{loop['loss']:.6f} and {matrix['loss']:.6f}"
        )
    if found := report.get("sets", {}).get("smooth-Chamfer"):
        console.print(
            f"smooth-Chamfer, {SETS[0]:,} x {SETS[1]:,} sets of {SETS[2]} x {args.width}: {found['seconds']:.1f} s, "
            f"{found['megabytes']:.0f} MB beyond the {found['sets_megabytes']:.0f} MB of the sets"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=list(HEADS))
    parser.add_argument("--batch", type=int, default=128, help="pairs of a step")
    parser.add_argument("--photos", type=int, default=1000, help="of an evaluation, with five captions each")
    parser.add_argument("--width", type=int, default=512, help="of pooled features and tokens")
    parser.add_argument("--regions", type=int, default=36, help="tokens of a photo")
    parser.add_argument("--words", type=int, default=16, help="tokens of a caption")
    parser.add_argument("--rounds", type=int, default=5, help="steps that are measured")
    parser.add_argument("--time-limit", type=float, default=3600, help="seconds that a case may take")
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/heads.json"), metavar="FILE")
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.case:
        keep_freed_memory()  # as the command line does
        part, name = args.case
        print(json.dumps(PARTS[part][0](name, args)))
        return
    report = {part: run(part, args) for part in args.parts}
    console = Console(width=110, highlight=False)
    show(report, args, console)
    on_gpu = args.device == "cuda"
    machine = {
        "device": torch.cuda.get_device_name() if on_gpu else "one CPU thread",
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    sizes = {name: getattr(args, name) for name in ("batch", "photos", "width", "regions", "words", "rounds")}
    write_json(args.json, {**sizes, **report, "machine": machine})
    console.print(f"float32, {machine['device']}, torch {machine['torch']}; written to {args.json}")


if __name__ == "__main__":
    main()
