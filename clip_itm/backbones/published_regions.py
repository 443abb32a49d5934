"""Weights of published programs on region features, under the names of this package.

SCAN, SGRAF, VSE-infinity, GPO and CRCL share their layout: a list of state dictionaries, that of the photos' encoder
(`fc`, `mlp.layers`, `mlp.bns`, `gpool`), that of the captions' (`embed`, `rnn` or `cap_rnn`, `gpool`), and with
attention a third of the similarity (crcl.md 5.5, 6.2, 6.3).
"""

import re

from torch import Tensor

from clip_itm.backbones.configuration import RegionsBackbone

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


def regions_state(image: State, text: State) -> State:
    """The state of a `Regions` backbone. Raises ValueError for a weight of another program."""
    return _renamed(image, IMAGE_NAMES) | _renamed(text, TEXT_NAMES)


def regions_section(image: State, text: State, **options) -> RegionsBackbone:
    """The architecture that these weights belong to, read off their shapes; `options` are further fields."""
    missing = [name for name in ("fc.weight",) if name not in image] + [
        name for name in ("embed.weight",) if name not in text
    ]
    if missing:
        raise ValueError(f"expected a checkpoint of SCAN, SGRAF or VSE-infinity with a GRU; it has no {missing[0]}")
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
