"""Learning-rate multipliers, by the optimiser step (docs/papers/npc.md 7.2) or the epoch (docs/papers/crcl.md 5.1)."""

import math
from collections.abc import Callable, Sequence

from clip_itm.training.configuration import TrainingSection


def warmup_steps(warmup: float, total_steps: int) -> int:
    """`warmup` of the recipe in steps: below 1 it is a fraction of all steps, otherwise a number of steps."""
    return round(warmup * total_steps) if warmup < 1 else round(warmup)


def cosine_lambda(step: int, warmup: int, total: int) -> float:
    """(step + 1) / `warmup` in the warm-up, then half a cosine that would reach 0 at step `total`.

    Example:
        >>> [round(cosine_lambda(step, warmup=2, total=6), 3) for step in range(6)]
        [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def constant_lambda(step: int, warmup: int) -> float:
    """(step + 1) / `warmup` in the warm-up, then 1."""
    return min(1.0, (step + 1) / max(1, warmup))


def step_lambda(epoch: int, every: int, at: Sequence[int] = ()) -> float:
    """A factor of 0.1 after every `every` epochs or, if `at` is given, from each of these epochs on.

    `epoch` counts from 0, within a piece of CRCL (docs/papers/crcl.md 5.1).

    Example:
        >>> [step_lambda(epoch, every=2) for epoch in range(4)]
        [1.0, 1.0, 0.1, 0.1]
    """
    return 0.1 ** (sum(epoch >= begin for begin in at) if at else epoch // every)


def plateau_lambda(step: int, warmup: int, steps_per_epoch: int, num_samples: int, epochs: int) -> float:
    """The published indexing bug, only for comparison: step = samples * epoch + step in epoch, of samples * epochs.

    The rate is almost flat within an epoch and falls between epochs; it never comes near zero.
    """
    epoch, step_in_epoch = divmod(step, steps_per_epoch)
    return cosine_lambda(num_samples * epoch + step_in_epoch, warmup, num_samples * epochs)


def lr_rule(
    section: TrainingSection, total_steps: int, warmup: int, steps_per_epoch: int, num_samples: int
) -> Callable[[int], float]:
    """The multiplier by optimiser step that `section.schedule` asks for."""
    match section.schedule:
        case "cosine":
            return lambda step: cosine_lambda(step, warmup, total_steps)
        case "constant":
            return lambda step: constant_lambda(step, warmup)
        case "step":
            return lambda step: (
                constant_lambda(step, warmup)
                * step_lambda(step // steps_per_epoch, section.decay_every, section.decay_at)
            )
        case "per_epoch_plateau":
            return lambda step: plateau_lambda(step, warmup, steps_per_epoch, num_samples, section.epochs)
