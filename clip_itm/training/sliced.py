"""Moments in parts over weights that every process has whole (what DeepSpeed calls ZeRO-1).

Each process steps its own slice of every weight, flattened, and then they exchange slices. For a method whose step
needs whole weights and gradients: instead of two moments of each weight, a process keeps those of its slices.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from clip_itm.distributed import gather_constant, num_processes, process_index
from clip_itm.training.own_parts import over_own_parts


def over_slices(groups: list[dict], make: Callable[[list[dict]], torch.optim.Optimizer]) -> torch.optim.Optimizer:
    """The optimiser that `make` makes for `groups` of whole tensors, over the slices of this process.

    It reads the gradients of the whole tensors, which have to be the same in all processes, and all of them have to
    step together. Its state is saved whole, for which all processes have to call `state_dict()`, and is that of an
    optimiser over the whole tensors: either can resume from the other's.
    """

    def take(tensor: Tensor, part: Slice) -> None:
        part.data = cut(tensor.detach(), tensor)  # a trainer may have moved the tensor since
        part.grad = None if tensor.grad is None else cut(tensor.grad, tensor)

    def exchange(tensor: Tensor, part: Slice) -> None:
        if is_cut(tensor):
            tensor.copy_(put_together(part, tensor))

    return over_own_parts(groups, make, _slice_of, take, exchange, put_together, cut)


class Slice(nn.Parameter):
    """A part of the tensor `whole`."""

    whole: Tensor


def whole_of(parameter: Tensor) -> Tensor:
    """The tensor of which `parameter` is a slice; any other one as it is."""
    return parameter.whole if isinstance(parameter, Slice) else parameter


def is_sliced(optimizer: torch.optim.Optimizer) -> bool:
    return any(isinstance(parameter, Slice) for group in optimizer.param_groups for parameter in group["params"])


def is_cut(tensor: Tensor) -> bool:
    """Whether there is a number for each process; a smaller tensor, or one without axes, is stepped whole by all."""
    return tensor.ndim > 0 and tensor.numel() >= num_processes()


def cut(value: Tensor, tensor: Tensor) -> Tensor:
    """The slice [n] of this process of a `value` as large as `tensor`; all of it if the tensor is not cut."""
    return value.reshape(-1)[_bounds(tensor, process_index())] if is_cut(tensor) else value


def put_together(part: Tensor, tensor: Tensor) -> Tensor:
    """The whole, shaped as `tensor`, of which each process has the slice `part`; all of them have to call this."""
    if not is_cut(tensor):
        return part
    processes = range(num_processes())
    sizes = [bounds.stop - bounds.start for bounds in (_bounds(tensor, process) for process in processes)]
    padded = part.new_zeros(max(sizes))
    padded[: len(part)] = part.detach()
    found = gather_constant(padded).chunk(len(sizes))
    return torch.cat([values[:size] for values, size in zip(found, sizes, strict=True)]).view(tensor.shape)


def _bounds(tensor: Tensor, process: int) -> slice:
    count, processes = tensor.numel(), num_processes()
    return slice(count * process // processes, count * (process + 1) // processes)


def _slice_of(tensor: Tensor) -> Slice:
    part = Slice(cut(tensor.detach(), tensor))
    part.whole = tensor
    return part
