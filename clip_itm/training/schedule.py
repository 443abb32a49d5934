"""Learning-rate multipliers, by the optimiser step (docs/papers/npc.md 7.2) or the epoch (docs/papers/crcl.md 5.1)."""

import math
from collections.abc import Sequence


def warmup_steps(warmup: float, total_steps: int) -> int:
    """`warmup` of the recipe in steps: a share of all steps below 1, a number of steps otherwise."""
    return round(warmup * total_steps) if warmup < 1 else round(warmup)


def cosine_lambda(step: int, warmup: int, total: int) -> float:
    """(s + 1) / W in the warm-up of W steps, then half a cosine that would reach 0 at `total`."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def constant_lambda(step: int, warmup: int) -> float:
    return min(1.0, (step + 1) / max(1, warmup))


def step_lambda(epoch: int, every: int, at: Sequence[int] = ()) -> float:
    """A tenth after every `every` epochs, or from each of the epochs `at` on, if given.

    `epoch` counts from 0, within a piece of CRCL (docs/papers/crcl.md 5.1).
    """
    return 0.1 ** (sum(epoch >= begin for begin in at) if at else epoch // every)


def plateau_lambda(step: int, warmup: int, steps_per_epoch: int, num_samples: int, epochs: int) -> float:
    """The published indexing slip, for comparison only: s = samples * epoch + step in epoch, total = samples * epochs.

    The rate is flat within an epoch and falls at its borders; it never comes near zero.
    """
    epoch, step_in_epoch = divmod(step, steps_per_epoch)
    return cosine_lambda(num_samples * epoch + step_in_epoch, warmup, num_samples * epochs)
