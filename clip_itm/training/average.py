"""`WeightAverage`: a moving average of the weights, which can stand in the place of those that train."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

UNAVERAGED = "unaveraged.safetensors"  # in a checkpoint, whose model.safetensors has the average


class WeightAverage:
    """Behind step t = 1, 2, ... of the optimiser: average = d * average + (1 - d) * weights, with

        d = min(decay, (1 + t) / (10 + t))

    so that the average leaves the weights of the beginning behind, which may be random, however short a run is against
    1 / (1 - decay) steps. Only what trains has an average; buffers (running statistics) are those of the model.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay, self.steps = decay, 0
        self.weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self.average = {name: weight.detach().clone() for name, weight in self.weights.items()}

    @torch.no_grad()
    def follow(self) -> None:
        """Take the weights of one more step into the average."""
        self.steps += 1
        update = get_ema_multi_avg_fn(min(self.decay, (1 + self.steps) / (10 + self.steps)))
        update([*self.average.values()], [*self.weights.values()], None)

    @torch.no_grad()
    def restart(self) -> None:
        """Begin again from the current weights."""
        self.steps = 0
        for name, weight in self.weights.items():
            self.average[name].copy_(weight)

    @torch.no_grad()
    def exchange(self) -> None:
        """Give the model the averaged weights, and keep those that train in their place; or the reverse."""
        for name, weight in self.weights.items():
            kept = weight.clone()
            weight.copy_(self.average[name])
            self.average[name].copy_(kept)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within it, the model has the averaged weights."""
        self.exchange()
        try:
            yield
        finally:
            self.exchange()

    def save(self, folder: Path) -> None:
        """The weights that train, and the number of steps in the average."""
        state = {f"weights.{name}": weight.detach().cpu().contiguous() for name, weight in self.weights.items()}
        save_file(state | {"steps": torch.tensor(self.steps)}, folder / UNAVERAGED)

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """The inverse, where the model has the averaged weights."""
        state = load_file(folder / UNAVERAGED)
        self.restart()
        self.steps = int(state["steps"])
        for name, weight in self.weights.items():
            weight.copy_(state[f"weights.{name}"])
