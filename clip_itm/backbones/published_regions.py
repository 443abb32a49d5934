"""Weights of published programs on region features, under the names of this package.

SCAN, SGRAF, VSE-infinity, GPO and CRCL share their layout: a list of state dictionaries, that of the images' encoder
(`fc`, `mlp.layers`, `mlp.bns`, `gpool`), that of the captions' (`embed`, `rnn` or `cap_rnn`, `gpool`), and with
attention a third of the similarity (docs/papers/crcl.md 5.5, 6.2, 6.3).
"""

import argparse
import re
from pathlib import Path

from torch import Tensor

from clip_itm.backbones.configuration import RegionsBackbone
from clip_itm.backbones.torch_file import read_torch_file, unwrapped

State = dict[str, Tensor]

IMAGE_NAMES = {
    r"fc\.": "region_encoder.linear.",
    r"mlp\.layers\.0\.": "region_encoder.mlp.hidden.",
    r"mlp\.layers\.1\.": "region_encoder.mlp.output.",
    r"mlp\.bns\.0\.": "region_encoder.mlp.norm.",
    r"gpool\.": "image_pooling.",
}
TEXT_NAMES = {
    r"embed\.": "text_tower.embedding.",
    r"(?:cap_)?rnn\.": "text_tower.gru.",
    r"gpool\.": "text_tower.pooling.",
}
UNUSED = re.compile(r"mlp\.bns\.1\.|.*num_batches_tracked$")  # a second batch norm that is never applied


def load_parts(path: str | Path) -> list[State]:
    """The two or three state dictionaries of a checkpoint. Tensors and the options object are read, no code is run.

    Raises ValueError where the file holds anything else.
    """
    content = read_torch_file(path, (argparse.Namespace,))  # the options of the program
    parts = content.get("model") if isinstance(content, dict) else None
    if not isinstance(parts, list | tuple) or len(parts) not in (2, 3) or not all(isinstance(p, dict) for p in parts):
        raise ValueError(
            f"{path}: expected a dictionary whose `model` is a list of state dictionaries (photos, captions and, with "
            "attention, similarity), as SCAN and its successors write it"
        )
    return [unwrapped(part) for part in parts]


def regions_state(image: State, text: State) -> State:
    """The state of a `Regions` backbone. Raises ValueError for a weight of another program."""
    return _renamed(image, IMAGE_NAMES) | _renamed(text, TEXT_NAMES)


def regions_section(image: State, text: State, **options) -> RegionsBackbone:
    """The architecture that these weights belong to, read off their shapes; `options` are further fields."""
    for name, part in (("fc.weight", image), ("embed.weight", text)):
        if name not in part:
            raise ValueError(f"expected a checkpoint of SCAN, SGRAF or VSE-infinity with a GRU; it has no {name}")
    embed_dim, region_dim = image["fc.weight"].shape
    vocab_size, word_dim = text["embed.weight"].shape
    pooling = {name: "gpo" if "gpool.linear.weight" in part else "mean" for name, part in (("i", image), ("t", text))}
    return RegionsBackbone(
        region_dim=region_dim,
        embed_dim=embed_dim,
        image_encoder="mlp" if "mlp.layers.0.weight" in image else "linear",
        pooling=pooling["i"],
        text_pooling=pooling["t"],
        word_dim=word_dim,
        bidirectional=any(name.endswith("weight_ih_l0_reverse") for name in text if "rnn." in name),
        vocab_size=vocab_size,
        **options,
    )


def _renamed(published: State, names: dict[str, str]) -> State:
    state = {}
    for name, value in published.items():
        if UNUSED.match(name):
            continue
        found = next((new + name[match.end() :] for old, new in names.items() if (match := re.match(old, name))), None)
        if found is None:
            raise ValueError(f"expected a checkpoint of SCAN, SGRAF or VSE-infinity; it has a weight {name}")
        state[found] = value
    return state
