"""How exact large batches are: every method, in several processes, through the gradient cache, with recomputed layers.

    python benchmarks/exactness.py                     1, 2 and 4 gloo processes on the CPU, about two minutes

One step on one global batch of 12 pairs (photos repeat, captions differ in length, no dropout) in float64. The
reference is one process that encodes and scores the batch at once and keeps everything. A figure is the largest
difference from it in any number: in the loss as a share of the loss, in a gradient as a share of the largest gradient
of its weight. For npc the trial weights count, too. Cached: 2 rows at a time. Accumulated: what `training.accumulate:
cached` makes of two batches of 6 pairs.
"""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from clip_itm.backbones.configuration import OpenClipBackbone
from clip_itm.configuration import ItmConfig
from clip_itm.distributed import average, leave_process_group, num_processes, process_index, process_state
from clip_itm.files import write_json
from clip_itm.methods import scores
from clip_itm.methods.aahr import triplet
from clip_itm.methods.aahr.criterion import Gates
from clip_itm.methods.crcl.labels import LabelStore, Phase
from clip_itm.methods.npc.step import NpcStep
from clip_itm.model import ItmModel
from clip_itm.similarity import tokens
from clip_itm.training.configuration import TrainingSection
from clip_itm.training.gradient_cache import Chunks, encoding_in_chunks

PROCESSES = (1, 2, 4)
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 24, "vocab_size": 100, "width": 16, "heads": 2, "layers": 2},
}
GRID = {"token_dim": 8, "max_words": 6}
GRAPH = {"regions": 4, "similarity_dim": 8, "dropout": 0.0, **GRID}
AAHR = {"embed_dim": 8, "num_heads": 2, "pooling_heads": 2, "prototypes": 4, "queue_length": 24, "max_k": 2}
AAHR |= {"dropout": 0.0, "graph_dropout": 0.0, "token_dropout": 0.0, "neighbours": 0.4}
HEADS = {
    "clip": {"kind": "clip"},
    "clip, equal captions": {"kind": "clip", "same_image": "positive", "same_caption": "positive"},
    "siglip": {"kind": "siglip", "same_caption": "mask"},
    "robust, gce": {"kind": "robust"},
    "robust, tal": {"kind": "robust", "loss": "tal"},
    "osa": {"kind": "osa", "weights": "released", "loss": "gce"},
    "crossfit, a fold": {"kind": "crossfit"},
    "crossfit, last phase": {"kind": "crossfit", "loss": "mix"},
    "polyloss": {"kind": "polyloss", "score_map": "affine"},
    "triplet": {"kind": "triplet", "reduction": "sum"},
    "triplet, scan": {"kind": "triplet", "similarity": {"kind": "scan", **GRID}},
    "crcl, saf": {"kind": "crcl", "temperature": 0.2, "similarity": {"kind": "saf", **GRAPH}},
    "clip, sgr": {"kind": "clip", "similarity": {"kind": "sgr", **GRAPH}},
    "dive": {"kind": "dive", "module": {"heads": 2, "head_dim": 8, "iterations": 2, "dropout": 0.0}},
    "crcl": {"kind": "crcl", "temperature": 0.2},
    "aahr": {"kind": "aahr", **AAHR},
    "npc": {"kind": "npc"},
    "npc, released": {"kind": "npc", "mode": "released", "trial_moments": "none"},
}
PAIRS = 12
IMAGE_IDS = torch.tensor([0, 1, 0, 2, 3, 0, 4, 4, 5, 5, 1, 2])  # photos repeat within a process and across them
CAPTION_IDS = torch.tensor([0, 1, 2, 3, 4, 5, 1, 6, 7, 8, 9, 3])
LENGTHS = torch.tensor([6, 3, 5, 4, 6, 2, 3, 5, 6, 4, 2, 3])  # words of captions, the end token included
FRACTION = 0.9  # of the gradient of npc's step: a batch of several


class Setting(NamedTuple):
    """A column of the table."""

    name: str
    chunks: Chunks | None
    recomputes: bool


class Pairs(NamedTuple):
    """Photos [6, 3, H, W] and captions [12, T] of the batch, and those [24] of npc's memory."""

    pixels: Tensor
    captions: Tensor
    memory_pixels: Tensor
    memory_captions: Tensor


def settings(processes: int) -> list[Setting]:
    accumulated = TrainingSection(batch_size=PAIRS // 2, gradient_accumulation_steps=2, accumulate="cached")
    chunks = {"": None, "cached": Chunks(2), "accumulated": Chunks(accumulated.chunk(processes))}
    return [
        Setting(", ".join(filter(None, (name, "recomputed" * recomputes))) or "plain", own, recomputes)
        for name, own in chunks.items()
        for recomputes in (False, True)
    ]


def make_pairs() -> Pairs:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(6 + 2 * PAIRS, 3, 32, 32, generator=generator, dtype=torch.float64)
    captions = torch.randint(1, 98, (3 * PAIRS, 6), generator=generator)
    places, lengths = torch.arange(6), LENGTHS.repeat(3)[:, None]
    captions = captions.masked_fill(places >= lengths, 0).masked_fill(places == lengths - 1, 99)
    return Pairs(pixels[:6], captions[:PAIRS], pixels[6:], captions[PAIRS:])


def make_model(case: str) -> ItmModel:
    """The same weights in every call, with what training would have given the method by now."""
    torch.manual_seed(0)
    backbone = OpenClipBackbone(model="tiny", model_config_dict={"model_cfg": TINY}, special_token_ids=(0, 99))
    model = ItmModel(ItmConfig(backbone=backbone.model_dump(mode="json"), head=HEADS[case])).double().train()
    head, spread = model.head, torch.linspace(0.05, 1, PAIRS, dtype=torch.float64)
    match head.config.kind:
        case "osa":
            head.excess = spread.flip(0)
        case "crossfit":
            head.current_loss = "gce" if case == "crossfit, a fold" else "mix"
            head.belief = None if case == "crossfit, a fold" else spread
        case "crcl":
            head.labels = LabelStore(PAIRS, spread.float())
            head.phase = Phase(piece=0, epoch_in_piece=3, frozen=False, replaces=False)
        case "aahr":
            head.criterion.gates = Gates(0, 0)
            queue, generator = head.criterion.queue, torch.Generator().manual_seed(2)
            keys = torch.randn(2, len(queue.ids), 8, generator=generator, dtype=torch.float64)
            queue.images, queue.texts = (torch.nn.functional.normalize(each, dim=1) for each in keys)
            queue.count = len(queue.ids)
    return model


def inputs_of(pairs: Pairs, case: str) -> dict[str, Tensor]:
    """The part of this process."""
    share = PAIRS // num_processes()
    own = slice(process_index() * share, (process_index() + 1) * share)
    photos, image_index = torch.unique(IMAGE_IDS[own], return_inverse=True)
    captions = pairs.captions[own]
    inputs = {"pixel_values": pairs.pixels[photos], "input_ids": captions, "attention_mask": (captions > 0).long()}
    inputs |= {"image_index": image_index, "image_ids": IMAGE_IDS[own], "pair_ids": torch.arange(PAIRS)[own]}
    inputs["pair_weight"] = torch.linspace(1, 0.5, PAIRS, dtype=torch.float64)[own]
    if HEADS[case].get("same_caption", "negative") != "negative":
        inputs["caption_ids"] = CAPTION_IDS[own]
    if not case.startswith("npc"):
        return inputs
    # entries of the photos, then of the captions; every third pair is its own entry
    entries = torch.cat([torch.arange(PAIRS)[own], PAIRS + torch.arange(PAIRS)[own]])
    known, more = entries % 3 == 0, pairs.memory_captions[entries]
    rows = torch.arange(2 * share)
    return inputs | {
        "memory_pixel_values": pairs.memory_pixels[entries],
        "memory_input_ids": more,
        "memory_attention_mask": (more > 0).long(),
        "memory_image_index": torch.where(known, image_index[rows % share], len(photos) + rows),
        "memory_caption": torch.where(known, rows % share, share + rows),
        "memory_image_ids": torch.where(known, IMAGE_IDS[own][rows % share], 100 + entries),
    }


def step(case: str, setting: Setting, pairs: Pairs) -> Iterator[tuple[str, Tensor]]:
    """Loss and gradients of the global batch: means over processes."""
    model, inputs = make_model(case), inputs_of(pairs, case)
    model.backbone.set_activation_checkpointing(setting.recomputes)
    scores.SCORE_BYTES = 8 * PAIRS * (2 if setting.chunks else PAIRS)  # cached: blocks of two rows, too
    if case.startswith("npc"):
        for name in ("memory_pixel_values", "memory_input_ids", "memory_attention_mask"):
            assert len(inputs[name]) == 2 * len(inputs["pair_ids"])
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, eps=TrainingSection().epsilon)
        training = NpcStep(model, optimizer, model.head.config, chunks=setting.chunks)
        loss = training(inputs, FRACTION).loss
        yield from ((f"trial {name}", value) for name, value in training.trial.items())
    else:
        if case == "aahr":
            generator = torch.Generator().manual_seed(3)
            keys = torch.randn(2, PAIRS, 8, generator=generator, dtype=torch.float64)
            model.head.keys = tuple(each[inputs["pair_ids"]] for each in keys)
        wrapped = model
        if num_processes() > 1:
            wrapped = DistributedDataParallel(model, find_unused_parameters=True)
        with encoding_in_chunks(model, setting.chunks):
            loss = wrapped(**inputs).loss
        loss.backward()
    yield "loss", average([loss.detach()])[0]
    gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    yield from ((f"gradient {name}", value) for name, value in gradients.items())


def find(cases: list[str]) -> dict[str, np.ndarray]:
    """ "case | setting | what" -> numbers."""
    torch.use_deterministic_algorithms(True)
    triplet.draw_negatives = partial(torch.argmax, dim=1)  # processes would draw negatives of their own
    tokens.BLOCK_BYTES = 16 * 6 * (4 + 8 + 16) * 2 * PAIRS * 3  # similarities of tokens in blocks of captions, too
    pairs, found = make_pairs(), {}
    for case in cases:
        for setting in settings(num_processes()):
            for name, value in step(case, setting, pairs):
                found[f"{case} | {setting.name} | {name}"] = value.detach().numpy().copy()
    return found


def differences(found: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> dict[tuple[str, str], float]:
    """(case, setting) -> the largest relative difference from the plain step of `reference`."""
    largest: dict[tuple[str, str], float] = {}
    for key, value in found.items():
        case, setting, name = key.split(" | ")
        expected = reference[f"{case} | plain | {name}"]
        assert value.dtype == np.float64, f"{key} is {value.dtype}"
        # what is 0 except for rounding, such as the gradient of a bias before a softmax, has no size of its own
        size = max(np.abs(expected).max(), 1e-4)
        apart = float(np.abs(value - expected).max() / size)
        largest[case, setting] = max(largest.get((case, setting), 0.0), apart)
    for case, setting in largest:  # a step that computed less would be exact in what it computed
        names = [
            {key.split(" | ")[2] for key in each if key.startswith(f"{case} | {s} |")}
            for each, s in ((found, setting), (reference, "plain"))
        ]
        assert names[0] == names[1], f"{case}, {setting}: {sorted(names[0] ^ names[1])}"
    return largest


def in_processes(count: int, cases: list[str]) -> dict[str, np.ndarray]:
    """What `find` finds in `count` gloo processes."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        out = str(Path(folder) / "found.npz")
        environment = os.environ | {
            "ACCELERATE_USE_CPU": "true",
            "OMP_NUM_THREADS": "1",
            "TORCH_CPP_LOG_LEVEL": "ERROR",
        }
        if count > 1:
            port = str(free.getsockname()[1])
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            environment |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
        free.close()
        words = [sys.executable, __file__, "--out", out, "--cases", *cases]
        started = [
            subprocess.Popen(words, env=environment | ({"RANK": str(r), "LOCAL_RANK": str(r)} if count > 1 else {}))
            for r in range(count)
        ]
        codes = [process.wait() for process in started]
        if any(codes):
            raise SystemExit(f"{count} processes ended with {codes}")
        with np.load(out) as arrays:
            return dict(arrays)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=PROCESSES)
    parser.add_argument("--cases", nargs="+", default=list(HEADS), choices=list(HEADS), metavar="CASE")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    parser.add_argument("--out", help=argparse.SUPPRESS)  # the part of one process
    args = parser.parse_args()
    if args.out is not None:
        state = process_state()
        found = find(args.cases)
        if state.is_main_process:
            np.savez(args.out, **found)
        state.wait_for_everyone()
        leave_process_group()
        return
    reference = in_processes(1, args.cases)
    columns = [setting.name for setting in settings(1)]
    table, figures = Table(title="largest relative difference from one process, float64"), {}
    for name in ("method", "processes", *columns):
        table.add_column(name)
    apart = {count: differences(in_processes(count, args.cases), reference) for count in args.processes}
    for case in args.cases:
        for count in args.processes:
            row = figures[f"{case}, {count}"] = [apart[count][case, column] for column in columns]
            table.add_row(case, str(count), *(f"{value:.1e}" for value in row))
    Console(width=140).print(table)
    if args.json is not None:
        write_json(args.json, {"columns": columns, "rows": figures})


if __name__ == "__main__":
    main()
