"""Checkpoints of the published SGRAF and CRCL programs with SAF or SGR (docs/papers/crcl.md 5.5, 6.8)."""

import re
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from clip_itm.backbones.published_regions import load_parts
from clip_itm.similarity.configuration import SafSection, SgrSection

State = dict[str, Tensor]

NAMES = {
    r"v_global_w": "image_vector",
    r"t_global_w": "text_vector",
    r"embedding_local\.0": "local",
    r"embedding_local\.1": "local_norm",
    r"embedding_global\.0": "mean",
    r"embedding_global\.1": "mean_norm",
    r"embedding_common\.0": "weight",
    r"sim_tranloc_w": "local_difference",
    r"sim_tranglo_w": "global_difference",
    r"sim_eval_w": "score",
    r"SAF_module\.attn_sim_w": "gate",
    r"SAF_module\.bn": "gate_norm",
    r"SGR_module\.(\d+)\.graph_query_w": r"steps.\1.query",
    r"SGR_module\.(\d+)\.graph_key_w": r"steps.\1.key",
    r"SGR_module\.(\d+)\.sim_graph_w": r"steps.\1.output",
}


class SgrafCheckpoint(NamedTuple):
    """States of the two encoders under published names, and of the similarity under the names of `Saf` or `Sgr`."""

    image: State
    text: State
    similarity: State


def similarity_state(published: State) -> State:
    """The state of a `Saf` or `Sgr` from that of the published similarity encoder."""
    state = {}
    for name, value in published.items():
        for old, new in NAMES.items():
            name = re.sub(old, new, name)
        state[name] = value
    return state


def similarity_section(published: State) -> SafSection | SgrSection:
    """The section of the recipe for the similarity encoder with these weights; ValueError for another one."""
    if "sim_eval_w.weight" not in published:
        raise ValueError("the third state dictionary has no sim_eval_w.weight; expected that of SAF or SGR")
    similarity_dim = published["sim_eval_w.weight"].shape[1]
    regions = len(published["v_global_w.embedding_local.1.weight"])
    if any(name.startswith("SAF_module.") for name in published):
        return SafSection(similarity_dim=similarity_dim, regions=regions)
    graph_steps = sum(name.endswith("graph_query_w.weight") for name in published)
    return SgrSection(similarity_dim=similarity_dim, regions=regions, graph_steps=graph_steps)


def load_sgraf(path: Path) -> SgrafCheckpoint:
    """The three parts of a published checkpoint. Only numbers and the options object are read; no code is run.

    Raises ValueError if the file holds anything else.
    """
    parts = load_parts(path)
    if len(parts) != 3:
        raise ValueError(
            f"{path}: expected a dictionary whose `model` is a list of three state dictionaries (photos, captions, "
            "similarity), as SGRAF and CRCL write it"
        )
    image, text, similarity = parts
    if "sim_eval_w.weight" not in similarity:
        raise ValueError(f"{path}: the third state dictionary has no sim_eval_w.weight; expected that of SAF or SGR")
    return SgrafCheckpoint(image, text, similarity_state(similarity))
