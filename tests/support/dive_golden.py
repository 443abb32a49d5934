"""Parameters of the golden files of DivE under the names of this package."""

import torch
from torch import nn

SLOTS = {"slots": "slots"}
LAYER = {
    "wq": "query.weight",
    "wk": "key.weight",
    "wv": "value.weight",
    "wo": "output.0.weight",
    "bo": "output.0.bias",
    "ln_q_w": "slot_norm.weight",
    "ln_q_b": "slot_norm.bias",
    "ln_kv_w": "token_norm.weight",
    "ln_kv_b": "token_norm.bias",
    "ff1_w": "ffn.0.weight",
    "ff1_b": "ffn.0.bias",
    "ff2_w": "ffn.3.weight",
    "ff2_b": "ffn.3.bias",
    "ln_ff_w": "ffn_norm.weight",
    "ln_ff_b": "ffn_norm.bias",
}
FINAL = {"ln_out_w": "final_norm.weight", "ln_out_b": "final_norm.bias"}
BLOCK = SLOTS | {name: f"layers.0.{own}" for name, own in LAYER.items()} | FINAL
SET = {name: f"attention.{own}" for name, own in BLOCK.items()} | {"ln_g_w": "norm.weight", "ln_g_b": "norm.bias"}


def load(module: nn.Module, arrays: dict, names: dict[str, str], prefix: str, fallback: str = "") -> nn.Module:
    """`module` in float64 with every one of its parameters from `arrays`, `prefix` before their published `names`.

    What is not there under `prefix` stands under `fallback`.
    """
    module = module.double()
    state = {
        own: torch.tensor(arrays[f"{prefix}{name}" if f"{prefix}{name}" in arrays else f"{fallback}{name}"]).double()
        for name, own in names.items()
    }
    module.load_state_dict(state, strict=True)
    return module
