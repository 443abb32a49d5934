"""Cost of one optimiser step of the methods for wrong captions: one model and batch, one run, in units of a plain step.

    python benchmarks/step.py                    a small ViT in float32 on one core, about two minutes
    python benchmarks/step.py --device cuda      ViT-B/32, 256 pairs, bf16 autocast, with peak memory

Next to the measured ratio is the count of docs/papers/npc.md 10, in units of F, the forward pass of the B pairs of a
batch; a backward pass counts 2 F. Steps are those of training: forward, backward, clipping, AdamW; reading photos is
not included. The count leaves out AdamW, which NPC runs a second time for its trial and whose cost depends on the
number of weights alone: its share is printed, and the ratio without it. Methods take turns in every round, medians
count. On the CPU the clock is the processor time of one thread, which other work on the machine hardly affects.
"""

import argparse
import gc
import platform
import statistics
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from datasets import Dataset as Rows
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from clip_itm.allocator import keep_freed_memory
from clip_itm.backbones.configuration import OpenClipBackbone
from clip_itm.data.batches import PairDataset
from clip_itm.data.noise import CaptionNoise
from clip_itm.data.rows import ROW_FEATURES, Split
from clip_itm.files import write_json
from clip_itm.methods.build import build_head
from clip_itm.methods.clip.configuration import ClipHeadConfig
from clip_itm.methods.configuration import HeadConfig
from clip_itm.methods.crcl.configuration import CrclHeadConfig
from clip_itm.methods.crcl.labels import LabelStore, Phase
from clip_itm.methods.crossfit.configuration import CrossfitHeadConfig
from clip_itm.methods.npc.configuration import NpcHeadConfig
from clip_itm.methods.npc.step import NpcStep
from clip_itm.methods.osa.configuration import OsaHeadConfig
from clip_itm.methods.robust.configuration import RobustHeadConfig
from clip_itm.model import ItmModel
from clip_itm.training.configuration import TrainingSection
from clip_itm.training.optimizer import make_optimizer

SMALL = {
    "embed_dim": 256,
    "vision_cfg": {"image_size": 64, "layers": 6, "width": 256, "patch_size": 8, "head_width": 64},
    "text_cfg": {"context_length": 32, "vocab_size": 4096, "width": 256, "heads": 4, "layers": 4},
}
TOKENS = 16  # of a caption: about as many as in COCO
PUBLISHED_UNITS = 12  # F of a step of the released NPC program (docs/papers/npc.md 10); it is not run here
TRAINING = TrainingSection(max_grad_norm=10)


class Method(NamedTuple):
    """A head and what its step costs: passes over B pairs, `forwards` under any weights, and `backwards`.

    `own`: share of the pairs that are their own memory entries; the other pairs have two entries that nobody shares.
    `separate`: dropout, so that no forward pass serves for two purposes.
    """

    name: str
    head: HeadConfig
    forwards: float
    backwards: float
    own: float = 0.0
    separate: bool = False

    @property
    def units(self) -> float:
        return self.forwards + 2 * self.backwards


METHODS = (
    Method("clip", ClipHeadConfig(), 1, 1),
    Method("robust", RobustHeadConfig(), 1, 1),
    Method("osa", OsaHeadConfig(), 1, 1),
    Method("crossfit, last phase", CrossfitHeadConfig(), 1, 1),
    Method("crcl", CrclHeadConfig(), 1, 1),
    Method("npc", NpcHeadConfig(), 5, 4),
    Method("npc, half own entries", NpcHeadConfig(), 3.5, 3, own=0.5),
    Method("npc, separate passes", NpcHeadConfig(), 8, 4, separate=True),
    Method("npc, mode released", NpcHeadConfig(mode="released"), 5, 2),
    Method("npc, memory_coef 0", NpcHeadConfig(memory_coef=0), 5, 2),
    Method("npc, weight_fn one", NpcHeadConfig(weight_fn="one"), 3, 3),
)


class RandomPairs(PairDataset):
    """`count` photos of random pixels with a caption of random tokens each, batched as for training."""

    def __init__(self, count: int, architecture: dict):
        rows = {
            "image": [{"path": f"{number}.jpg", "bytes": None} for number in range(count)],
            "image_id": [str(number) for number in range(count)],
            "captions": [["not read"]] * count,
            "caption_ids": [[str(number)] for number in range(count)],
        }
        split = Split("train", Rows.from_dict(rows, features=ROW_FEATURES))
        super().__init__(split, CaptionNoise.clean(split.pairs), processor=None)
        generator = torch.Generator().manual_seed(0)
        size, vocabulary = architecture["vision_cfg"]["image_size"], architecture["text_cfg"].get("vocab_size", 49408)
        self.pixels = torch.randn(count, 3, size, size, generator=generator)
        self.tokens = torch.randint(1, vocabulary - 1, (count, TOKENS), generator=generator)
        self.tokens[:, -1] = vocabulary - 1  # the end: towers pool at the largest token

    def _images(self, photos: np.ndarray) -> dict[str, Tensor]:
        return {"pixel_values": self.pixels[photos]}

    def _texts(self, captions: np.ndarray) -> dict[str, Tensor]:
        tokens = self.tokens[captions]
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def make_batch(dataset: RandomPairs, size: int, method: Method) -> dict[str, Tensor]:
    """The first `size` pairs, for npc with entries among the 2 * `size` that follow."""
    dataset.memory = None
    if isinstance(method.head, NpcHeadConfig):
        pair = np.arange(size)
        others = pair >= round(method.own * size)
        dataset.memory = (pair + size * others, pair + 2 * size * others)
    return dataset.__getitems__(list(range(size)))


class Steps:
    """Steps of one method on one batch, with the clock at their ends and around every AdamW."""

    def __init__(self, model: ItmModel, method: Method, inputs: dict[str, Tensor]):
        self.device = next(model.parameters()).device
        self.model, self.inputs = model.train(), {name: tensor.to(self.device) for name, tensor in inputs.items()}
        model.head = build_head(method.head, model.backbone.widths).to(self.device)
        if isinstance(method.head, CrclHeadConfig):
            model.head.labels = LabelStore(int(inputs["pair_ids"].max()) + 1)
            model.head.phase = Phase(piece=0, epoch_in_piece=2, frozen=False, replaces=False)
        if isinstance(method.head, OsaHeadConfig):
            model.head.excess = torch.rand(len(inputs["pair_ids"]), device=self.device)
        if isinstance(method.head, CrossfitHeadConfig):
            model.head.belief = torch.rand(len(inputs["pair_ids"]), device=self.device)
        self.optimizer = make_optimizer(model, TRAINING)
        self.npc = None
        self.marks: list = []
        optimizers = [self.optimizer]
        if isinstance(method.head, NpcHeadConfig):
            self.npc = NpcStep(model, self.optimizer, method.head)
            self.npc.shares_forward = False if method.separate else None
            optimizers.append(self.npc.trial_optimizer)
        for optimizer in optimizers:
            optimizer.register_step_pre_hook(self._mark)
            optimizer.register_step_post_hook(self._mark)

    def _mark(self, *_) -> None:
        if self.device.type == "cuda":
            self.marks.append(torch.cuda.Event(enable_timing=True))
            self.marks[-1].record()
        else:
            self.marks.append(time.process_time())

    def __call__(self) -> tuple[float, float]:
        """One step: its seconds, and those of them in AdamW."""
        self.marks.clear()
        self._mark()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            loss = self.model(**self.inputs).loss if self.npc is None else self.npc(self.inputs)
        if self.npc is None:
            loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), TRAINING.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._mark()
        first, *inside, last = self.marks
        if self.device.type == "cuda":
            last.synchronize()
        adamw = sum(self._between(*pair) for pair in zip(inside[::2], inside[1::2], strict=True))
        return self._between(first, last), adamw

    def _between(self, start, end) -> float:
        return start.elapsed_time(end) / 1000 if self.device.type == "cuda" else end - start


def measure(backbone: OpenClipBackbone, batch: int, device: str, rounds: int, steps: int) -> dict:
    """Every method `steps` times a round, from a fresh optimiser and after one step that does not count."""
    model = ItmModel.from_backbone(backbone).to(device)
    dataset = RandomPairs(3 * batch, model.backbone.config.model_config_dict["model_cfg"])
    times: dict[str, list[tuple[float, float]]] = {method.name: [] for method in METHODS}
    peaks = dict.fromkeys(times)
    for _ in range(rounds):
        for method in METHODS:
            step = Steps(model, method, make_batch(dataset, batch, method))
            step()
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            times[method.name] += [step() for _ in range(steps)]
            if device == "cuda":
                peaks[method.name] = torch.cuda.max_memory_allocated() / 1e9
            del step
            gc.collect()  # hooks and step refer to each other; moments of one method must not count for the next
    return {
        "model": backbone.model,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "batch_size": batch,
        "precision": "bf16 autocast" if device == "cuda" else "float32",
        "rounds": rounds,
        "steps_per_round": steps,
        "published_npc_units": PUBLISHED_UNITS,
        "methods": [figures(method, times, peaks[method.name]) for method in METHODS],
        "machine": {
            "device": torch.cuda.get_device_name() if device == "cuda" else "one CPU thread",
            "processor": platform.processor() or platform.machine(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def figures(method: Method, times: dict[str, list[tuple[float, float]]], peak: float | None) -> dict:
    whole, adamw, rest = medians(times[method.name])
    plain_whole, _, plain_rest = medians(times[METHODS[0].name])
    return {
        "name": method.name,
        "forwards": method.forwards,
        "backwards": method.backwards,
        "units": method.units,
        "counted_ratio": method.units / METHODS[0].units,
        "seconds": whole,
        "ratio": whole / plain_whole,
        "adamw_share": adamw / whole,
        "ratio_without_adamw": rest / plain_rest,
        "peak_gigabytes": peak,
        "all_seconds": times[method.name],
    }


def medians(steps: list[tuple[float, float]]) -> list[float]:
    """Seconds of a step, of its AdamW, and of the rest of it."""
    columns = zip(*((whole, adamw, whole - adamw) for whole, adamw in steps), strict=True)
    return [statistics.median(column) for column in columns]


def show(report: dict) -> None:
    size = f"{report['parameters'] / 1e6:.1f} M weights, {report['batch_size']} pairs"
    table = Table(title=f"{report['model']}, {size}")
    for header in ("", "count", "x plain", "ms", "x plain", "AdamW", "x plain, rest"):
        table.add_column(header, justify="right" if header else "left")
    on_gpu = report["methods"][0]["peak_gigabytes"] is not None
    if on_gpu:
        table.add_column("peak GB", justify="right")
    for row in report["methods"]:
        cells = [
            row["name"],
            f"{row['units']:g} F",
            f"{row['counted_ratio']:.2f}",
            f"{1000 * row['seconds']:.0f}",
            f"{row['ratio']:.2f}",
            f"{100 * row['adamw_share']:.0f} %",
            f"{row['ratio_without_adamw']:.2f}",
        ]
        table.add_row(*cells, *([f"{row['peak_gigabytes']:.1f}"] if on_gpu else []))
    table.add_row("npc as published", f"{PUBLISHED_UNITS} F", f"{PUBLISHED_UNITS / METHODS[0].units:.2f}")
    console, machine = Console(), report["machine"]
    console.print(table)
    console.print(
        f"{report['precision']}, medians of {report['rounds']} x {report['steps_per_round']} steps, "
        f"{machine['device']}, {machine['processor']}, torch {machine['torch']}",
        highlight=False,
        soft_wrap=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--model", help="of open_clip, or a config FILE.json (default: a small ViT; cuda: ViT-B-32)")
    parser.add_argument("--batch", type=int, help="pairs (default: 16; cuda: 256)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="of every method in every round")
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/step.json"), metavar="FILE")
    args = parser.parse_args()
    keep_freed_memory()  # as the command line does
    torch.set_num_threads(1)
    on_gpu = args.device == "cuda"
    if args.model or on_gpu:
        backbone = OpenClipBackbone(model=args.model or "ViT-B-32-quickgelu")
    else:
        backbone = OpenClipBackbone(model="small ViT", model_config_dict={"model_cfg": SMALL})
    report = measure(backbone, args.batch or (256 if on_gpu else 16), args.device, args.rounds, args.steps)
    show(report)
    write_json(args.json, report)
    print(f"written to {args.json}")


if __name__ == "__main__":
    main()
