"""For the tests of AAHR: published parameter names to those here, a small configuration, random vectors."""

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_itm.methods.aahr.configuration import AahrHeadConfig

# of the golden arrays; no dropout, so that every number can be compared
SMALL = {
    "embed_dim": 32,
    "num_heads": 4,
    "dropout": 0.0,
    "graph_dropout": 0.0,
    "token_dropout": 0.0,
    "prototypes": 12,
    "queue_length": 12,
    "reference_batch": 6,
    "prototypes_after": 0,
    "graph_after": 0,
}


def small_config(**changes) -> AahrHeadConfig:
    return AahrHeadConfig(**(SMALL | changes))


def tensors(arrays: dict, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Golden arrays, the floating ones in `dtype`."""
    found = {name: torch.tensor(value) for name, value in arrays.items()}
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in found.items()}


def pooling_state(arrays: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The eight separate linear layers of each of query, key and value, one above the other."""
    return {
        f"{name}.{part}": torch.cat([arrays[f"{prefix}{name}_{head}_{part}"] for head in range(8)])
        for name in ("query", "key", "value")
        for part in ("weight", "bias")
    }


def transformer_state(arrays: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    names = ["self_attn.in_proj_weight", "self_attn.in_proj_bias"]
    names += [
        f"{layer}.{part}"
        for layer in ("self_attn.out_proj", "linear1", "linear2", "norm1", "norm2")
        for part in ("weight", "bias")
    ]
    return {name: arrays[prefix + name.replace(".", "_")] for name in names}


def encoder_state(arrays: dict[str, Tensor], side: str) -> dict[str, Tensor]:
    """State of an `TokenEncoder` from the arrays of `side` ("img" or "txt"). Two parallel linear layers are one."""
    state = {f"pooling.{name}": value for name, value in pooling_state(arrays, f"{side}_mha_pool_").items()}
    state |= {
        f"transformer.{name}": value for name, value in transformer_state(arrays, f"{side}_aggr_layers_0_").items()
    }
    layers = {"gate": "gated_fusion_fc_gate", "projection.linear": "linear"}
    if side == "img":
        layers |= {"projection.linear": "fc_fc", "projection.mlp.hidden": "fc_mlp_layers_0"}
        layers |= {"projection.mlp.output": "fc_mlp_layers_1", "projection.mlp.norm": "fc_mlp_bns_0"}
    for part in ("weight", "bias"):
        state[f"pooled_projection.{part}"] = (
            arrays[f"{side}_fc_clip_fc_{part}"] + arrays[f"{side}_fc_clip_mlp_layers_0_{part}"]
        )
        state |= {f"{own}.{part}": arrays[f"{side}_{published}_{part}"] for own, published in layers.items()}
    if side == "img":
        for part in ("running_mean", "running_var"):
            state[f"projection.mlp.norm.{part}"] = arrays[f"img_fc_mlp_bns_0_{part}"]
    return state


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(normal(*shape, seed=seed), dim=-1)
