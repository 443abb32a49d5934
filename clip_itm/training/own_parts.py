"""An optimiser over what a process has of each tensor, whose state is saved and loaded whole."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

Part = TypeVar("Part", bound=nn.Parameter)


def over_own_parts(
    groups: list[dict],
    make: Callable[[list[dict]], torch.optim.Optimizer],
    own: Callable[[Tensor], Part],
    before: Callable[[Tensor, Part], None],
    after: Callable[[Tensor, Part], None],
    put_together: Callable[[Tensor, Tensor], Tensor],
    cut: Callable[[Tensor, Tensor], Tensor],
) -> torch.optim.Optimizer:
    """The optimiser that `make` makes for `groups` of tensors, over the part `own` of each.

    `before` gives a tensor's part its gradient for a step, and `after` follows the step; then the part has no gradient
    again. `put_together` makes the whole of a moment from that of the part, and `cut` the other way round, both for the
    tensor that they are given; moments without axes stay as they are. All processes have to call `state_dict()`, which
    is that of an optimiser over the whole tensors: either can resume from the other's.
    """
    tensors = [tensor for group in groups for tensor in group["params"]]
    part_of = {tensor: own(tensor) for tensor in tensors}
    optimizer = make([{**group, "params": [part_of[tensor] for tensor in group["params"]]} for group in groups])

    def begin(*_) -> None:
        for tensor, part in part_of.items():
            before(tensor, part)

    @torch.no_grad()
    def end(*_) -> None:
        for tensor, part in part_of.items():
            part.grad = None
            after(tensor, part)

    def change(state: dict, put: Callable[[Tensor, Tensor], Tensor]) -> dict:
        moments = {
            number: {name: value if value.ndim == 0 else put(value, tensors[number]) for name, value in known.items()}
            for number, known in state["state"].items()
        }
        return {**state, "state": moments}

    optimizer.register_step_pre_hook(begin)
    optimizer.register_step_post_hook(end)
    optimizer.register_state_dict_post_hook(lambda _, state: change(state, put_together))
    optimizer.register_load_state_dict_pre_hook(lambda _, state: change(state, cut))
    return optimizer
