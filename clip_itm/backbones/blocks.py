"""A tower cut into blocks from input to output, for freezing the lower ones and for layer-wise learning rates."""

import re
from collections.abc import Iterable, Sequence

from torch import nn

Block = list[nn.Module | nn.Parameter]

# Parameters that a module owns directly come before its children, except these, which project what the children made.
LAST = ("proj", "text_projection")


def partition(tower: nn.Module, layers: Sequence[nn.Module]) -> list[Block]:
    """[what comes before the layers], [layer 0], [layer 1], ..., [what comes after]; all of `tower`, nothing twice.

    Relies on children being registered in the order in which they are used, as in every tower that is supported here.
    """
    before: Block = []
    after: Block = []
    own = {id(layer) for layer in layers}
    holders = {id(module) for module in tower.modules() if own & {id(part) for part in module.modules()}}
    current = before

    def walk(module: nn.Module) -> None:
        nonlocal current
        for name, parameter in module.named_parameters(recurse=False):
            (after if name in LAST else current).append(parameter)
        for child in module.children():
            if id(child) in own:
                current = after
            elif id(child) in holders:
                walk(child)
            else:
                current.append(child)

    walk(tower)
    return [before, *([layer] for layer in layers), after]


def longest_list(tower: nn.Module) -> list[nn.Module]:
    """The layers of a transformers model: its longest `ModuleList`, the outermost of equally long ones."""
    lists = [module for module in tower.modules() if isinstance(module, nn.ModuleList)]
    return list(max(lists, key=len)) if lists else []


def timm_layers(trunk: nn.Module) -> list[nn.Module]:
    """The blocks or stages of a timm model; none if it has its own names for them."""
    for name in ("blocks", "stages", "layers"):
        found = getattr(trunk, name, None)
        if isinstance(found, nn.Sequential | nn.ModuleList):
            return list(found)
    return [child for name, child in trunk.named_children() if re.fullmatch(r"(layer|stages?|block|s)_?\d+", name)]


def parameters(blocks: Iterable[Block]) -> Iterable[nn.Parameter]:
    """All parameters of some blocks, in order."""
    for block in blocks:
        for part in block:
            if isinstance(part, nn.Parameter):
                yield part
            else:
                yield from part.parameters()


def modules(blocks: Iterable[Block]) -> list[nn.Module]:
    return [part for block in blocks for part in block if isinstance(part, nn.Module)]
