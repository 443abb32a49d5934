"""The global batch: what W processes compute on their rows equals what one process computes on all of them.

`accelerator.gather` carries no gradient, so contrastive losses need this one. Every process computes the rows of its
own pairs against all columns and returns the mean over its rows; data parallel training averages gradients over
processes, which makes it the gradient of the mean over the global batch (equal numbers of rows everywhere).
"""

import gc
import os
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from clip_itm.visible import visible

T = TypeVar("T")
SHARDS = "ACCELERATE_USE_FSDP"
# what a launcher can ask for besides data parallelism and weights in parts; none of it is part of a recipe
OTHER_LAUNCHES = (
    *("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM", "ACCELERATE_USE_PARALLELISM_CONFIG"),
    *("ACCELERATE_DOWNCAST_BF16", "XLA_USE_BF16", "XLA_DOWNCAST_BF16"),
)


def process_state():
    """accelerate's `PartialState` of this launch: the one way to ask for it here.

    A bare `PartialState()` that comes first ignores `ACCELERATE_USE_CPU`: every process of a CPU launch would believe
    that it is alone and train on the whole batch. Raises ValueError for a launch that is neither plain data parallelism
    nor FSDP2.
    """
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    if asked := [name for name in OTHER_LAUNCHES if _is_on(os.environ.get(name, ""))]:
        raise ValueError(
            f"{', '.join(asked)}: clip-itm trains with data parallelism and float32 weights, whole in every process or "
            "in parts (FSDP2), with the precision that the recipe names (training.precision); launch it with "
            "distributed_type MULTI_GPU (accelerate_config.yaml) or FSDP (recipes/accelerate/fsdp2.yaml, or zero2.yaml "
            "for what DeepSpeed's ZeRO-2 cuts)"
        )
    asks_for_parts()
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def asks_for_parts() -> bool:
    """Whether this launch asks for weights in parts. Raises ValueError where it asks for FSDP of another kind."""
    if not _is_on(os.environ.get(SHARDS, "")):
        return False
    if (version := os.environ.get("FSDP_VERSION", "1").strip()) != "2":
        raise ValueError(
            f"FSDP_VERSION={version}: weights are cut in parts by FSDP2; set fsdp_version: 2 in the configuration of "
            "accelerate (recipes/accelerate/fsdp2.yaml)"
        )
    if _is_on(os.environ.get("FSDP_OFFLOAD_PARAMS", "")):
        raise ValueError(
            "FSDP_OFFLOAD_PARAMS: weights stay on their devices; set fsdp_offload_params: false in the configuration "
            "of accelerate (recipes/accelerate/fsdp2.yaml)"
        )
    return True


def takes_layers_apart() -> bool:
    """Whether layers of a model in parts lose the parts of other processes between their forward and backward pass.

    If they keep them, this is what DeepSpeed calls ZeRO-2: gradients and moments in parts, and weights outside a step.
    """
    return _is_on(os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true"))


def _is_on(value: str) -> bool:
    return value.strip().lower() not in ("", "0", "false", "no", "off")


def num_processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_index() -> int:
    return dist.get_rank() if num_processes() > 1 else 0


def say(text: str) -> None:
    """Print once, on standard error of the first process."""
    if process_state().is_main_process:
        print(visible(text, kept="\n"), file=sys.stderr, flush=True)


def agree(problem: Exception | None) -> None:
    """Raise what went wrong, in every process: its own `problem`, or a ValueError with the text of another's."""
    told: list[str | None] = [None]
    if num_processes() > 1:
        told = [None] * num_processes()
        dist.all_gather_object(told, None if problem is None else str(problem))
    if problem is not None:
        raise problem
    if others := [text for text in told if text is not None]:
        raise ValueError(others[0])


def by_first(action: Callable[[], T]) -> T | None:
    """What `action` returns in the first process, None in the others; all of them raise if it fails."""
    made, problem = None, None
    if process_state().is_main_process:
        try:
            made = action()
        except (OSError, ValueError) as error:
            problem = error
    agree(problem)
    return made


def leave_process_group() -> None:
    """At the end of a command: a process that exits while it is still a member of a gloo group may abort."""
    if dist.is_available() and dist.is_initialized():
        gc.collect()  # a trainer's wrapped model is part of a reference cycle and holds the group
        dist.destroy_process_group()


class _Gather(torch.autograd.Function):
    """Forward: all rows; backward: the gradients that all processes have for this process's rows, added up."""

    @staticmethod
    def forward(context, rows: Tensor) -> Tensor:
        context.own = slice(process_index() * len(rows), (process_index() + 1) * len(rows))
        return gather_constant(rows)

    @staticmethod
    def backward(context, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[context.own]


def gather_with_gradient(rows: Tensor) -> Tensor:
    """[b, ...] of every process -> [W * b, ...] in their order; the gradient flows back to each of them."""
    return rows if num_processes() == 1 else _Gather.apply(rows)


def gather_constant(rows: Tensor) -> Tensor:
    """The same for ids and other constants: [b, ...] -> [W * b, ...]."""
    if num_processes() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(num_processes())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def is_same_everywhere(sha256: str, device: torch.device) -> bool:
    """Whether all processes call this with the same hash (its first 60 bits)."""
    index = torch.tensor([int(sha256[:15], 16)], device=device)
    return bool((gather_constant(index) == index).all())


def average(gradients: Sequence[Tensor]) -> list[Tensor]:
    """The mean of each tensor over all processes: what DistributedDataParallel does in its backward pass."""
    gradients = [gradient.contiguous() for gradient in gradients]
    if num_processes() > 1:
        works = [dist.all_reduce(gradient, async_op=True) for gradient in gradients]
        for work, gradient in zip(works, gradients, strict=True):
            work.wait()
            gradient /= num_processes()
    return gradients


def broadcast_buffers(module: torch.nn.Module) -> None:
    """Give all processes the running statistics of the first, as DistributedDataParallel does before a forward pass."""
    if num_processes() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)
