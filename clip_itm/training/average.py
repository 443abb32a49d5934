"""`WeightAverage`: a moving average of the weights, which can take their place."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from clip_itm.training.sharding import local, part_of, put_together

UNAVERAGED = "unaveraged.safetensors"  # in a checkpoint, whose model.safetensors has the average


class WeightAverage:
    """An average of the weights that train, updated after step t = 1, 2, ... of the optimiser.

        average = d * average + (1 - d) * weights,   d = min(decay, (1 + t) / (10 + t))

    d starts small so that the average forgets the initial weights, which may be random, even if a run is short compared
    with 1 / (1 - decay) steps. Buffers (running statistics) are not averaged. If a model is in parts (`sharding.py`),
    every process averages its own part.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay, self.steps = decay, 0
        self.weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self.average = {name: local(weight).clone() for name, weight in self.weights.items()}

    @torch.no_grad()
    def follow(self) -> None:
        """Add the weights of one more step to the average."""
        self.steps += 1
        update = get_ema_multi_avg_fn(min(self.decay, (1 + self.steps) / (10 + self.steps)))
        update([*self.average.values()], [local(weight) for weight in self.weights.values()], None)

    @torch.no_grad()
    def restart(self) -> None:
        """Begin again from the current weights."""
        self.steps = 0
        for name, weight in self.weights.items():
            self.average[name].copy_(local(weight))

    @torch.no_grad()
    def exchange(self) -> None:
        """Swap the model's weights and the averaged ones."""
        for name, weight in self.weights.items():
            own = local(weight)
            kept = own.clone()
            own.copy_(self.average[name])
            self.average[name].copy_(kept)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within it, the model has the averaged weights."""
        self.exchange()
        try:
            yield
        finally:
            self.exchange()

    def state_dict(self) -> dict[str, Tensor]:
        """The whole weights that train, and the number of steps in the average; all processes have to call this."""
        state = {f"weights.{name}": put_together(weight) for name, weight in self.weights.items()}
        return state | {"steps": torch.tensor(self.steps)}

    def save(self, folder: Path, state: dict[str, Tensor]) -> None:
        """Write a `state_dict()`."""
        save_file({name: value.cpu().contiguous() for name, value in state.items()}, folder / UNAVERAGED)

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Read what `save` wrote; the model must have the averaged weights."""
        state = load_file(folder / UNAVERAGED)
        self.restart()
        self.steps = int(state["steps"])
        for name, weight in self.weights.items():
            local(weight).copy_(part_of(state[f"weights.{name}"], weight))
