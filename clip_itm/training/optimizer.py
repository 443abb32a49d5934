"""AdamW over groups of parameters: layer-wise learning rates and the choice of what decays."""

from functools import partial

import torch
from torch import nn

from clip_itm.backbones.blocks import parameters
from clip_itm.training.configuration import TrainingSection
from clip_itm.training.sharding import is_sharded, over_parts
from clip_itm.training.sliced import over_slices

FUSED_ON = ("cpu", "cuda", "xpu", "mps")


def block_lr_multipliers(blocks: list[list], decay: float) -> list[float]:
    """Learning-rate multiplier of each block, from input to output: 1 at the top, times `decay` for each block below.

    Example:
        >>> block_lr_multipliers([[], [], []], decay=0.5)
        [0.25, 0.5, 1.0]
    """
    return [decay ** (len(blocks) - 1 - index) for index in range(len(blocks))]


def parameter_groups(model, section: TrainingSection) -> list[dict]:
    """Groups for AdamW: every trainable parameter of an `ItmModel` in exactly one, with its rate and decay.

    Raises ValueError if a key of `lr_multipliers` is not the beginning of a trainable parameter, or if nothing trains.
    """
    multiplier: dict[nn.Parameter, float] = {}
    for blocks in (model.backbone.image_blocks(), model.backbone.text_blocks()):
        for block, value in zip(blocks, block_lr_multipliers(blocks, section.layer_decay), strict=True):
            for parameter in parameters([block]):
                multiplier[parameter] = value
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    own_multipliers = _own_multipliers([name for name, _ in trained], section.lr_multipliers)
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in trained:
        decays = section.decay_all or parameter.ndim >= 2
        key = (own_multipliers[name] * multiplier.get(parameter, 1.0), section.weight_decay if decays else 0.0)
        group = groups.setdefault(key, {"params": [], "lr": section.learning_rate * key[0], "weight_decay": key[1]})
        group["params"].append(parameter)
    if not groups:
        raise ValueError(
            "backbone.freeze_image and freeze_text leave nothing to train: unfreeze one, or add backbone.lora"
        )
    # The first group is the one whose rate is logged: let it be the top of the model.
    return [groups[key] for key in sorted(groups, reverse=True)]


def _own_multipliers(names: list[str], multipliers: dict[str, float]) -> dict[str, float]:
    """The factor for each parameter name: that of the longest key with which it begins, else 1."""
    for key in multipliers:
        if not any(name.startswith(key) for name in names):
            parts = sorted({".".join(name.split(".")[:2]) for name in names})
            raise ValueError(
                f"training.lr_multipliers: no trained parameter begins with {key!r}; expected the beginning of such "
                f"names as {', '.join(parts)}"
            )
    keys = sorted(multipliers, key=len, reverse=True)
    return {name: next((multipliers[key] for key in keys if name.startswith(key)), 1.0) for name in names}


def make_optimizer(model, section: TrainingSection, slices: bool = False) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`, fused (one pass over weights and moments) where torch supports it.

    A resumed run keeps the way it began with: the optimiser's state says which. `slices`: the moments of a whole model
    are in parts (`sliced.py`).
    """
    groups = parameter_groups(model, section)
    fused = all(parameter.device.type in FUSED_ON for group in groups for parameter in group["params"])
    make = partial(torch.optim.AdamW, betas=section.betas, eps=section.epsilon, fused=fused or None)
    if slices:
        return over_slices(groups, make)
    return over_parts(groups, make) if is_sharded(model) else make(groups)
