"""The recipe decides, not the launcher: what `accelerate launch` puts into the environment is checked against it."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from clip_itm.distributed import SHARDS, asks_for_parts, process_state
from clip_itm.methods.method import method_of
from clip_itm.recipe import Recipe
from clip_itm.training.sharding import COMPUTES_ALONE

NO = ("", "no", "none", "false", "auto")


def parts_weights(recipe: Recipe) -> bool:
    """Whether the processes of this launch cut the model into parts.

    Raises ValueError if the recipe's method, or its gradient cache with this torch, does not allow that.
    """
    if not asks_for_parts():
        return False
    if (reason := method_of(recipe.head).keeps_whole) is not None:
        raise ValueError(
            f"head.kind {recipe.head.kind}: its weights cannot be cut in parts (FSDP2): {reason}. Launch it with "
            "distributed_type MULTI_GPU (accelerate_config.yaml)"
        )
    processes = process_state().num_processes
    if recipe.training.chunk(processes) is not None and not COMPUTES_ALONE:
        raise ValueError(
            "training.cache_chunk and accumulate: cached need torch 2.15 or newer for weights in parts (FSDP2): install"
            " it, leave them out, or launch with distributed_type MULTI_GPU (accelerate_config.yaml)"
        )
    return processes > 1


@contextmanager
def recipe_decides(recipe: Recipe) -> Iterator[None]:
    """Within, nothing that accelerate reads changes a result; a warning if it contradicts the recipe.

    Cutting the model into parts is not left to accelerate either, which does it on GPUs only.
    """
    set_aside = {name: os.environ.pop(name) for name in _decided(recipe) if name in os.environ}
    for name, value in set_aside.items():
        key, allowed = _decided(recipe)[name]
        if value.strip().lower() not in allowed:
            warnings.warn(f"{name}={value} is left aside: {key}", stacklevel=3)
    try:
        yield
    finally:
        os.environ |= set_aside


def _decided(recipe: Recipe) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Variable -> what decides instead, and the values that agree with it."""
    training = recipe.training
    precision = {"fp32": NO, "bf16": (*NO, "bf16"), "auto": (*NO, "bf16")}[training.precision]
    clipping, steps = training.max_grad_norm, training.gradient_accumulation_steps
    return {
        SHARDS: ("clip-itm cuts the model itself", (*NO, "true", "1", "yes", "on")),
        "FSDP_ACTIVATION_CHECKPOINTING": (
            f"training.activation_checkpointing {training.activation_checkpointing} of the recipe decides",
            (*NO, f"{training.activation_checkpointing}".lower()),
        ),
        "ACCELERATE_MIXED_PRECISION": (f"training.precision {training.precision} of the recipe decides", precision),
        "ACCELERATE_FP8_BACKEND": (f"training.precision {training.precision} of the recipe decides", NO),
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (
            f"training.gradient_accumulation_steps {steps} of the recipe decides",
            (*NO, "1", f"{steps}"),
        ),
        "ACCELERATE_GRADIENT_CLIPPING": (
            f"training.max_grad_norm {clipping:g} of the recipe decides",
            (*NO, f"{clipping:g}", f"{clipping}"),
        ),
        "ACCELERATE_DYNAMO_BACKEND": (f"training.compile {training.compile} of the recipe decides", NO),
    }
