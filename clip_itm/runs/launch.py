"""The recipe decides, not the launcher: what `accelerate launch` puts into the environment is held against it."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from clip_itm.recipe import Recipe

NO = ("", "no", "none", "false", "auto")


@contextmanager
def recipe_decides(recipe: Recipe) -> Iterator[None]:
    """Within, nothing that accelerate reads changes a result; a warning where it says otherwise than the recipe."""
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
    """Variable -> what decides instead, and the values that say the same."""
    training = recipe.training
    precision = {"fp32": NO, "bf16": (*NO, "bf16"), "auto": (*NO, "bf16")}[training.precision]
    clipping, steps = training.max_grad_norm, training.gradient_accumulation_steps
    return {
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
        "ACCELERATE_DYNAMO_BACKEND": ("no recipe compiles a model, which would change its rounding", NO),
    }
