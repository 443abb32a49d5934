"""A model in parts (FSDP2): every process keeps its part of each weight, of its gradient and of its moments.

Layers of the towers, one by one, and the rest of the model are put together for as long as they compute, or for a
step. A weight without axes (a temperature) cannot be cut and stays whole everywhere. Outside the model's own forward
and backward pass, weights are read within `whole`, where no process waits for another: in encoding, each has its own
number of batches. `alone` is the same for a step in chunks.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from clip_itm.distributed import average, num_processes, process_index, takes_layers_apart
from clip_itm.training.own_parts import over_own_parts

COMPUTES_ALONE = hasattr(FSDPModule, "set_manual_backward_finalization")  # since torch 2.15


def shard(model: nn.Module) -> None:
    """Cut the weights of an `ItmModel` in parts, in place; all processes take those of the first."""
    if is_sharded(model):
        return
    for tensor in (*model.parameters(), *model.buffers()):
        dist.broadcast(tensor.data, 0)
    mesh = init_device_mesh(model.device.type, (num_processes(),))
    uncut = {parameter for parameter in model.parameters() if parameter.ndim == 0}
    for part in (*_layers(model), model):
        fully_shard(part, mesh=mesh, reshard_after_forward=_is_apart_after_forward(part, model), ignored_params=uncut)
    model._get_fsdp_state()._lazy_init()  # else the first layer that runs alone would take itself for the root


def _is_apart_after_forward(part: nn.Module, model: nn.Module) -> bool:
    return part is not model and takes_layers_apart()  # the end of the model's forward pass begins the backward one


def is_sharded(model: nn.Module) -> bool:
    return isinstance(model, FSDPModule)


def _layers(model: nn.Module) -> list[nn.Module]:
    """The layers between the ends of the towers, each of which is called as a module."""
    towers = (model.backbone.image_blocks(), model.backbone.text_blocks())
    layers = [block[0] for blocks in towers for block in blocks[1:-1] if len(block) == 1]
    return [layer for layer in layers if isinstance(layer, nn.Module) and [*layer.parameters()]]


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """Within it, every process has all weights of a model, which may be in parts, and runs it without the others."""
    is_cut = any(isinstance(parameter, DTensor) for parameter in model.parameters())
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)] if is_cut else []
    with torch.inference_mode(False):  # what is made once is used in training, too
        for part in parts:
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(_is_apart_after_forward(part, model), recurse=False)
            part.reshard()


@contextmanager
def alone(model: nn.Module) -> Iterator[None]:
    """Within it, a forward and a backward pass of a model in parts; gradients are cut and averaged after them.

    For passes in chunks, of which processes may have different numbers; needs `COMPUTES_ALONE`.
    """
    model.set_manual_backward_finalization(True)
    model.set_reshard_after_backward(False)
    model.set_requires_gradient_sync(False)
    with whole(model):
        yield
        model.set_requires_gradient_sync(True)
        model.finalize_backward()
    model.set_reshard_after_backward(True)
    model.set_manual_backward_finalization(False)


# Gradients


def average_uncut(model: nn.Module) -> None:
    """After every backward pass: average over processes the gradients that are not in parts."""
    uncut = [p for p in model.parameters() if p.grad is not None and not isinstance(p.grad, DTensor)]
    for parameter, gradient in zip(uncut, average([p.grad for p in uncut]), strict=True):
        parameter.grad = gradient


@torch.no_grad()
def clip_gradients(model: nn.Module, most: float) -> Tensor:
    """Scale the gradient to a norm of at most `most`; returns its norm before that (a scalar)."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    cut = _square([local(gradient) for gradient in gradients if isinstance(gradient, DTensor)])
    dist.all_reduce(cut)
    norm = (cut + _square([gradient for gradient in gradients if not isinstance(gradient, DTensor)])).sqrt()
    torch._foreach_mul_([local(gradient) for gradient in gradients], (most / (norm + 1e-6)).clamp(max=1))
    return norm


def _square(parts: list[Tensor]) -> Tensor:
    """The sum of the squares of all numbers in some tensors."""
    return torch.stack(torch._foreach_norm(parts)).square().sum() if parts else torch.zeros(())


# Tensors in parts, and whole ones


def local(tensor: Tensor) -> Tensor:
    """The part of this process, in the same memory, without a gradient; a whole tensor as it is."""
    return tensor.detach().to_local() if isinstance(tensor, DTensor) else tensor.detach()


def part_of(value: Tensor, tensor: Tensor) -> Tensor:
    """The part of a whole `value` that belongs where this process has `tensor`."""
    if not isinstance(tensor, DTensor):
        return value
    size = -(-len(value) // num_processes())
    return value[process_index() * size : (process_index() + 1) * size].clone()  # the rest is not kept in memory


def like(part: Tensor, tensor: Tensor) -> Tensor:
    """The tensor of which each process has such a `part`, cut as `tensor` is."""
    if not isinstance(tensor, DTensor):
        return part
    shape, stride = tensor.shape, tensor.stride()
    return DTensor.from_local(part, tensor.device_mesh, tensor.placements, run_check=False, shape=shape, stride=stride)


def put_together(tensor: Tensor) -> Tensor:
    """The whole of a tensor in parts, on the CPU of the first process and empty in others; all have to call this."""
    if not isinstance(tensor, DTensor):
        return tensor.detach()
    found = tensor.detach().full_tensor()
    return found.cpu() if process_index() == 0 else found.new_empty(0, device="cpu")


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """`model.state_dict()`, put together."""
    return {name: put_together(value) for name, value in model.state_dict().items()}


@torch.no_grad()
def load_weights(model: nn.Module, weights: Mapping[str, Tensor], strict: bool = True) -> None:
    """`model.load_state_dict`, for a model that may be in parts."""
    if not is_sharded(model):
        model.load_state_dict(weights, strict=strict)
        return
    own = model.state_dict()
    assert not strict or own.keys() == weights.keys()
    for name, value in weights.items():
        local(own[name]).copy_(part_of(value, own[name]))


def over_parts(groups: list[dict], make: Callable[[list[dict]], torch.optim.Optimizer]) -> torch.optim.Optimizer:
    """The optimiser that `make` makes for `groups` of parameters in parts, over the plain tensors of this process.

    Its state is saved whole, for which all processes have to call `state_dict()`.
    """

    def take_gradient(parameter: Tensor, own: nn.Parameter) -> None:
        own.grad = None if parameter.grad is None else local(parameter.grad)

    return over_own_parts(
        groups,
        make,
        own=lambda parameter: nn.Parameter(local(parameter)),
        before=take_gradient,
        after=lambda *_: None,
        put_together=lambda part, parameter: put_together(like(part, parameter)),
        cut=part_of,
    )
