"""What timm image towers need, whichever library built them."""

from pathlib import Path

import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from clip_itm.reading import reading


def patch_tokens(trunk: nn.Module, maps: Tensor, grid: int | None = None) -> Tensor:
    """The output of `trunk.forward_features` as patch tokens [B, T, C], without class and register tokens.

    With `grid` a feature map is averaged to grid x grid tokens. Raises `ValueError` if the tower gives no map.
    """
    if maps.ndim == 3:
        if grid is not None:
            raise ValueError(f"backbone.image_grid: {type(trunk).__name__} gives tokens, no feature map; leave it out")
        return maps[:, getattr(trunk, "num_prefix_tokens", 0) :]
    if getattr(trunk, "output_fmt", "NCHW") == "NHWC":
        maps = maps.permute(0, 3, 1, 2)
    if grid is not None:
        maps = F.adaptive_avg_pool2d(maps, grid)
    return maps.flatten(2).transpose(1, 2)


def set_timm_checkpointing(trunk: nn.Module, enabled: bool) -> None:
    """Switch activation checkpointing; `ValueError` for a model that does not support it."""
    try:
        trunk.set_grad_checkpointing(enabled)
    except (AssertionError, AttributeError) as error:
        if enabled:
            raise ValueError(
                f"{type(trunk).__name__} of timm has no activation checkpointing: switch it off"
            ) from error


def load_timm_weights(trunk: nn.Module, path: Path) -> None:
    """Load a safetensors file into a timm model without classifier; the file's classifier is ignored.

    Raises `ValueError` for a file that does not exist, lacks weights or has others left over.
    """
    heads = trunk.default_cfg.get("classifier") or ()
    heads = tuple(f"{head}." for head in ([heads] if isinstance(heads, str) else heads))
    with reading(path, "safetensors weights of this timm tower", "give the weights that belong to it"):
        state = load_file(path)
        trunk.load_state_dict({key: value for key, value in state.items() if not key.startswith(heads)})
