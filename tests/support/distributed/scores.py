"""Run by torchrun in test_scores.py: losses of one global batch and their gradients.

torchrun --nproc_per_node 2 -m support.distributed.scores OUT.npz
"""

import sys

import numpy as np
import torch
from pydantic import TypeAdapter

from clip_itm.backbones.features import Features, FeatureWidths
from clip_itm.distributed import average, gather_constant, num_processes, process_index
from clip_itm.methods.build import build_head
from clip_itm.methods.configuration import HeadConfig
from support.processes import save_from_first

IMAGE_IDS = torch.tensor([0, 1, 0, 2, 3, 0, 4, 1])  # photos repeat within a process and across them
CAPTION_IDS = torch.tensor([0, 1, 2, 0, 3, 1, 0, 0])  # equal within a process, across them, and of one photo
WORDS = torch.tensor([3, 1, 5, 2, 2, 4, 1, 3])  # the longest caption is in the first process
WIDTHS = FeatureWidths(pooled=6, image_tokens=6, text_tokens=6)
HEADS = {
    "polyloss": {"kind": "polyloss", "score_map": "affine"},
    "polyloss avg": {"kind": "polyloss", "form": "avg", "same_image": "negative"},
    "polyloss warming up": {"kind": "polyloss", "warmup_epochs": 1},
    "triplet": {"kind": "triplet"},
    "triplet mean": {"kind": "triplet", "reduction": "mean", "negatives": "all"},
    "siglip": {"kind": "siglip", "temperature": 0.2, "bias": -2.0},
    "gce": {"kind": "robust", "temperature": 0.2},
    "rince": {"kind": "robust", "loss": "rince", "temperature": 0.2, "same_image": "positive"},
    "sce": {"kind": "robust", "loss": "sce", "temperature": 0.2, "same_image": "negative"},
    "tal": {"kind": "robust", "loss": "tal", "temperature": 0.2, "tal_margin": 0.5},
    "clip, captions right": {"kind": "clip", "temperature": 0.2, "same_caption": "positive"},
    "gce, captions left out": {"kind": "robust", "temperature": 0.2, "same_caption": "mask"},
    "siglip, captions right": {"kind": "siglip", "temperature": 0.2, "bias": -2.0, "same_caption": "positive"},
    "crcl, captions left out": {"kind": "crcl", "temperature": 0.2, "same_caption": "mask"},
    "triplet, captions left out": {"kind": "triplet", "same_caption": "mask"},
    "polyloss, captions left out": {"kind": "polyloss", "score_map": "affine", "same_caption": "mask"},
    "rince, captions right": {"kind": "robust", "loss": "rince", "temperature": 0.2, "same_caption": "positive"},
    "tal, captions left out": {"kind": "robust", "loss": "tal", "temperature": 0.2, "same_caption": "mask"},
    "sce, captions left out": {"kind": "robust", "loss": "sce", "temperature": 0.2, "same_caption": "mask"},
    "osa, captions right": {"kind": "osa", "temperature": 0.2, "same_caption": "positive"},
    "crossfit, captions left out": {"kind": "crossfit", "temperature": 0.2, "same_caption": "mask"},
    "npc, captions left out": {"kind": "npc", "temperature": 0.2, "rho": 0.5, "same_caption": "mask"},
}
SIMILARITIES = {
    "cosine": {"kind": "cosine"},
    "scan": {"kind": "scan", "token_dim": 5},
    "saf": {"kind": "saf", "regions": 4, "similarity_dim": 5, "dropout": 0.0},
    "sgr": {"kind": "sgr", "regions": 4, "similarity_dim": 5, "dropout": 0.0},
}


def features() -> tuple[Features, Features]:
    """Of the global batch, float64."""
    generator = torch.Generator().manual_seed(3)
    pooled = torch.randn(8, 6, generator=generator, dtype=torch.float64)
    images = torch.randn(8, 4, 6, generator=generator, dtype=torch.float64)
    texts = images[:, [0, 1, 2, 3, 0]] + 0.5 * torch.randn(8, 5, 6, generator=generator, dtype=torch.float64)
    mask = torch.arange(5) < WORDS[:, None]
    return Features(pooled, images), Features(pooled + 0.5 * torch.randn(8, 6, generator=generator), texts, mask)


def of_own_pairs(whole: Features, own: slice) -> Features:
    """What a process has: captions padded to the longest of its own only."""
    mask, tokens = None if whole.mask is None else whole.mask[own], whole.tokens[own]
    if mask is not None:
        longest = int(mask.sum(dim=1).max())
        mask, tokens = mask[:, :longest], tokens[:, :longest]
    return Features(whole.pooled[own], tokens, mask)


def step(head_name: str, similarity: str) -> dict[str, np.ndarray]:
    """Loss of the global batch, gradients of pooled features or tokens, gradients of weights, and buffers after it."""
    torch.manual_seed(0)
    section = {} if similarity == "cosine" else {"similarity": SIMILARITIES[similarity]}
    config = TypeAdapter(HeadConfig).validate_python(HEADS[head_name] | section)
    head = build_head(config, WIDTHS).double().train()
    share = len(IMAGE_IDS) // num_processes()
    own = slice(process_index() * share, (process_index() + 1) * share)
    images, texts = features()
    inputs = [(x.pooled if similarity == "cosine" else x.tokens).requires_grad_() for x in (images, texts)]
    local = [of_own_pairs(x, own) for x in (images, texts)]
    outputs = head.image_outputs(local[0]), head.text_outputs(local[1])
    captions = {"caption_ids": CAPTION_IDS[own]} if "same_caption" in HEADS[head_name] else {}
    loss, _ = head.loss(*outputs, IMAGE_IDS[own], torch.arange(8)[own], **captions)
    loss.backward()
    found = {"loss": gather_constant(loss.detach()[None]).mean()}
    for name, value in zip(("images", "texts"), inputs, strict=True):
        found[f"gradient {name}"] = average([value.grad])[0]  # zero where the pair is another process's
    for name, parameter in head.named_parameters():
        if parameter.grad is not None:
            found[f"gradient {name}"] = average([parameter.grad])[0]
    for name, value in head.state_dict().items():
        copies = gather_constant(value[None].double())
        assert all(torch.equal(copies[0], copy) for copy in copies), f"{name} differs between processes"
        found[f"state {name}"] = value
    return {f"{head_name} {similarity} {name}": value.numpy() for name, value in found.items()}


CASES = [(head, "cosine") for head in HEADS]
CASES += [(name, "scan") for name, head in HEADS.items() if head["kind"] not in ("npc", "osa")]
CASES += [("triplet", "saf"), ("triplet", "sgr")]


def all_cases() -> dict[str, np.ndarray]:
    found = {}
    for case in CASES:
        found |= step(*case)
    return found


if __name__ == "__main__":
    save_from_first(all_cases, sys.argv[1])
