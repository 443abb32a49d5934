"""AAHR in training: momentum encoders, whose embeddings of the batch are the keys, and gates counted in batches."""

import copy
import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from clip_itm.methods.aahr.criterion import gates_of
from clip_itm.reading import reading
from clip_itm.training.gradient_cache import IMAGE_INPUTS, TEXT_INPUTS, in_chunks
from clip_itm.training.trainer import PairTrainer

STATE = "aahr_state.safetensors"


class MomentumEncoders:
    """A copy of a model that follows its weights, without gradients, and only embeds (docs/papers/aahr.md 8).

    Frozen weights are shared with the model. `decay`: weight of the copy's own weights at each step. With `mode` "eval"
    it copies the model's running statistics, with "train" it has its own.
    """

    def __init__(self, model: nn.Module, decay: float, mode: str):
        self.model, self.mode = model, mode
        self.average = get_ema_multi_avg_fn(decay)
        own = {id(parameter): parameter for parameter in model.parameters() if not parameter.requires_grad}
        own[id(model.head.criterion)] = model.head.criterion
        self.copy = copy.deepcopy(model, own)
        self.copy.head.criterion = None
        frozen = {name for name, parameter in self.copy.named_parameters() if not parameter.requires_grad}
        self.names = [name for name, _ in self.copy.named_parameters() if name not in frozen]
        self.buffers = [name for name in self.copy.state_dict() if name not in frozen and name not in self.names]
        self.copy.requires_grad_(False).train(mode == "train")

    @torch.no_grad()
    def follow(self) -> None:
        """Move the copy towards the model's current weights, by 1 - `decay`."""
        own, others = ([model.get_parameter(name) for name in self.names] for model in (self.copy, self.model))
        self.average(own, others, None)
        if self.mode == "eval":
            for name in self.buffers:
                self.copy.get_buffer(name).copy_(self.model.get_buffer(name))

    def state_dict(self) -> dict[str, Tensor]:
        state = self.copy.state_dict()
        return {name: state[name] for name in (*self.names, *self.buffers)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.copy.load_state_dict(state, strict=False)  # shared weights are not in it


class AahrTrainer(PairTrainer):
    """A `PairTrainer` with `momentum` encoders, which make the keys of the queue, and with gates counted in batches.

    The encoders are made before the first batch, so that they start with the model's weights.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.head = self.model.head
        self.config, self.criterion = self.head.config, self.head.criterion
        batches = len(self.sampler)
        self.criterion.gates = gates_of(self.config, self.section.contrastive_batch, batches)
        self.momentum: MomentumEncoders | None = None
        self._momentum_state: dict[str, Tensor] = {}
        self._followed: int | None = None  # the optimiser step before which the copy last followed
        self._warn_of_closed_gates(batches)

    def _warn_of_closed_gates(self, batches: int) -> None:
        total = batches * self.section.epochs
        if self.args.max_steps > 0:
            total = self.args.max_steps * self.args.gradient_accumulation_steps
        for name, step in self.criterion.gates._asdict().items():
            if step >= total:
                warnings.warn(
                    f"head.{name}_after: AAHR's {name} would begin after {step} batches, and this run has {total}; "
                    f"write a number of epochs (head.{name}_after: {self.section.epochs / 4:g})",
                    stacklevel=3,
                )

    def training_step(self, model, inputs, num_items_in_batch=None) -> Tensor:
        if self.config.queue_weight:
            inputs = self._prepare_inputs(inputs)
            self._follow()
            self.head.keys = self._keys(inputs)
        return super().training_step(model, inputs, num_items_in_batch)

    def _follow(self) -> None:
        """Once per optimiser step, before the keys are made."""
        if self.momentum is None:
            self.momentum = MomentumEncoders(self.model, self.config.momentum, self.config.momentum_mode)
            self.momentum.load_state_dict(self._momentum_state)
        if self._followed != self.state.global_step:
            self.momentum.follow()
            self._followed = self.state.global_step

    @torch.no_grad()
    def _keys(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Embeddings [b, D] of images and captions under the momentum encoders, row k of pair k."""
        encoders = self.momentum.copy
        with self.accelerator.autocast():
            images, texts = (
                in_chunks(encode, {name: inputs.get(name) for name in names}, self.chunks)
                for encode, names in ((encoders.encode_images, IMAGE_INPUTS), (encoders.encode_texts, TEXT_INPUTS))
            )
        return images[inputs["image_index"]], texts

    # Checkpoints

    def save_method_state(self, folder: Path) -> None:
        parts = {"criterion": self.criterion.state_dict(), "queue": self.criterion.queue.state_dict()}
        parts["momentum"] = self._momentum_state if self.momentum is None else self.momentum.state_dict()
        state = {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}
        state["step"] = torch.tensor(self.criterion.step)
        save_file({name: value.detach().cpu().clone().contiguous() for name, value in state.items()}, folder / STATE)

    def load_method_state(self, folder: Path) -> None:
        with reading(folder / STATE, "the state of AAHR in this run"):
            self._restore(load_file(folder / STATE))

    def _restore(self, state: dict[str, Tensor]) -> None:
        self.criterion.step = int(state.pop("step"))
        parts: dict[str, dict[str, Tensor]] = {"criterion": {}, "queue": {}, "momentum": {}}
        for name, value in state.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = value
        self.criterion.load_state_dict(parts["criterion"])
        self.criterion.queue.load_state_dict(parts["queue"])
        self._momentum_state = parts["momentum"]
