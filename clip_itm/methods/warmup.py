"""A warning for runs that end within the warm-up, so that their method never acts."""

import warnings


def warn_if_it_is_all(max_steps: int, epochs: int, steps_per_epoch: int, outcome: str) -> None:
    """Warn if `training.max_steps` (0 or less: none) ends within `head.warmup_epochs`; `outcome`: what follows."""
    if 0 < max_steps <= epochs * steps_per_epoch:
        warnings.warn(
            f"training.max_steps {max_steps} ends within head.warmup_epochs ({epochs} of {steps_per_epoch} steps): "
            f"{outcome}",
            stacklevel=3,
        )
