"""One optimiser step of NPC: a trial step, its effect on the memory, the weighted gradient (docs/papers/npc.md 3).

    trial   theta+ = optimiser'(theta, gradient of mean l(batch))          a copy; theta itself does not move
    weigh   w = weight(memory losses under theta, memory losses under theta+), constants
    train   gradient of mean(w * l(batch)) + coef * mean(l(image-keyed memory) + l(caption-keyed memory)) at theta

The released program computes something else (docs/papers/npc.md 2.6); mode "released" repeats it: mean(w) * mean(l), a
memory loss without gradient, and a trial gradient that is four times too large.

Images and captions that occur more than once in a batch and its memory entries are encoded once. If training and
inference mode compute the same (no dropout, no batch norm), one forward pass under theta serves the trial, the losses
before it and training: with 3 B distinct rows 13 forward units instead of 16, and 9 instead of 12 if the memory does
not train (docs/papers/npc.md 10). Otherwise trial and memory are computed in inference mode, as published.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from clip_itm.distributed import average, broadcast_buffers, gather_constant
from clip_itm.methods.clip.head import contrastive_losses
from clip_itm.methods.npc.configuration import NpcHeadConfig
from clip_itm.methods.npc.weights import confidence_weight, improvement_ratio
from clip_itm.training.gradient_cache import IMAGE_INPUTS, TEXT_INPUTS, Chunks, in_chunks
from clip_itm.training.sliced import cut, is_sliced, over_slices, put_together, whole_of


class NpcOutcome(NamedTuple):
    """`loss` scalar (total of this process); `losses`, `ratio` and `weight` [b], one value per pair; no gradients."""

    loss: Tensor
    losses: Tensor
    ratio: Tensor
    weight: Tensor


class Batch:
    """A batch of b pairs with its memory entries, as `PairDataset` makes it once it has a bank.

    Images and captions of the pairs, then (keys `memory_...`) those of the 2 b entries that are not among them:
    `memory_image_index` and `memory_caption` int64 [2 b] are rows of the two together, image-keyed entries first.
    """

    def __init__(self, inputs: dict[str, Tensor]):
        self.images, self.texts = _pick(inputs, IMAGE_INPUTS), _pick(inputs, TEXT_INPUTS)
        self.memory_images = _pick(inputs, IMAGE_INPUTS, "memory_")
        self.memory_texts = _pick(inputs, TEXT_INPUTS, "memory_")
        self.image_index, self.image_ids = inputs["image_index"], inputs["image_ids"]
        self.pair_weight = inputs.get("pair_weight")
        self.memory_image_index, self.memory_caption = inputs["memory_image_index"], inputs["memory_caption"]
        self.memory_image_ids = inputs["memory_image_ids"]
        self.caption_ids, self.memory_caption_ids = inputs.get("caption_ids"), inputs.get("memory_caption_ids")

    def distinct_memory(self) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor], Tensor]:
        """The distinct images of the entries and each entry's row [2 b] among them; the same for captions."""
        distinct, image_index = torch.unique(self.memory_image_index, return_inverse=True)
        captions, caption = torch.unique(self.memory_caption, return_inverse=True)
        images = {name: torch.cat([self.images[name], self.memory_images[name]])[distinct] for name in self.images}
        texts = {name: torch.cat([self.texts[name], self.memory_texts[name]])[captions] for name in self.texts}
        return images, image_index, texts, caption


class NpcStep:
    """Computes the gradient of one NPC step; the real optimiser, its clipping and its schedule stay outside.

    `model`: an `ItmModel` (anything with `encode_images`, `encode_texts` and an `NpcHead` as `head`); `optimizer`: the
    real one, whose groups, rates and (for `trial_moments: base`) moments the trial step follows; `right` bool [N]:
    pairs that weigh 1 whatever the step finds, as a person marked them right; `chunks`: those of the gradient
    cache, if there is one. Under several processes the model must not be called through
    DistributedDataParallel: both gradients are averaged here.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: NpcHeadConfig,
        right: Tensor | None = None,
        chunks: Chunks | None = None,
    ):
        self.right = right
        self.model, self.optimizer, self.config = model, optimizer, config
        self.encode = _Encode(model, chunks)
        trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self.parameters = list(trained.values())
        self.trial = {name: value.detach().clone() for name, value in trained.items()}
        self.trial_optimizer = _trial_optimizer(
            optimizer, dict(zip(self.parameters, self.trial.values(), strict=True)), config.trial_moments
        )
        self.is_sliced = is_sliced(self.trial_optimizer)
        self._trained_trial = {whole_of(parameter): parameter for parameter in _parameters(self.trial_optimizer)}
        self.shares_forward: bool | None = None

    def __call__(self, inputs: dict[str, Tensor], fraction: float = 1.0) -> NpcOutcome:
        """One step on `inputs`, a batch as `PairDataset` makes it; adds `fraction` times the gradient to `.grad`."""
        config, batch = self.config, Batch(inputs)
        if not self.shares_forward:  # the model may have running statistics
            broadcast_buffers(self.model)
        if config.weight_fn == "one":
            losses, memory = self._forward(batch, memory_trains=config.trains_memory, memory=config.trains_memory)
            ratio = weight = torch.ones_like(losses.detach())
        else:
            if self.shares_forward is None:
                self.shares_forward = self._modes_agree(batch)
            if not self.shares_forward:
                self.model.eval()
            losses, memory = self._forward(batch, memory_trains=self.shares_forward and config.trains_memory)
            self._trial_step(losses)
            before = tuple(loss.detach() for loss in memory)
            ratio = improvement_ratio(before, self._memory_after(batch))
            weight = confidence_weight(ratio, config.weight_fn)
            if self.right is not None:
                weight = weight.masked_fill(self.right[inputs["pair_ids"]], 1)
            if not self.shares_forward:
                self.model.train()
                losses, memory = self._forward(batch, config.trains_memory, memory=config.trains_memory, known=before)
        total = self._total(losses, weight, memory)
        gradients = average(torch.autograd.grad(total, self.parameters, allow_unused=True, materialize_grads=True))
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            gradient = gradient * fraction if fraction != 1 else gradient
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        return NpcOutcome(total.detach(), losses.detach(), ratio, weight)

    def _total(self, losses: Tensor, weight: Tensor, memory: tuple[Tensor, ...]) -> Tensor:
        assert losses.shape == weight.shape, "one weight per pair: a broadcast would hide the difference"
        if self.config.mode == "intended":
            total = (weight * losses).mean()
        else:
            total = gather_constant(weight).mean() * losses.mean()
        return total + self.config.memory_coef * sum(memory).mean() if memory else total

    def _forward(
        self, batch: Batch, memory_trains: bool, memory: bool = True, known: tuple[Tensor, ...] = ()
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Losses [b] of the pairs, and of their image-keyed and caption-keyed entries, under theta.

        Without `memory` the entries are not encoded again: `known` (constants, for the logged total) is returned.
        """
        images, texts, scale = self.encode(batch.images, batch.texts)
        losses = self._losses(images[batch.image_index], texts, batch.image_ids, batch.caption_ids, scale)
        if batch.pair_weight is not None:  # part of the plain loss, and so of the trial step
            losses = batch.pair_weight * losses
        if not memory:
            return losses, known
        with torch.set_grad_enabled(memory_trains):
            more_images, more_texts, _ = self.encode(batch.memory_images, batch.memory_texts)
            if not memory_trains:
                images, texts, scale = images.detach(), texts.detach(), scale.detach()
            images = images if more_images is None else torch.cat([images, more_images])
            texts = texts if more_texts is None else torch.cat([texts, more_texts])
            return losses, self._memory_losses(
                images[batch.memory_image_index], texts[batch.memory_caption], batch, scale
            )

    def _trial_step(self, losses: Tensor) -> None:
        """Write theta+ to `self.trial`, with weight decay, without clipping; moments are of earlier trial gradients."""
        loss = self.config.trial_scale * losses.mean()
        retain = self.shares_forward
        gradients = average(
            torch.autograd.grad(loss, self.parameters, retain_graph=retain, allow_unused=True, materialize_grads=True)
        )
        trial = list(self.trial.values())
        with torch.no_grad():
            torch._foreach_copy_(trial, self.parameters)
        if self.config.trial_moments == "base":
            self._copy_base_moments()
        for group, base in zip(self.trial_optimizer.param_groups, self.optimizer.param_groups, strict=True):
            group["lr"] = base["lr"]
        for value, gradient in zip(trial, gradients, strict=True):
            value.grad = gradient
        self.trial_optimizer.step()
        for value in trial:
            value.grad = None

    @torch.no_grad()
    def _memory_after(self, batch: Batch) -> tuple[Tensor, ...]:
        images, image_index, texts, caption = batch.distinct_memory()
        trial = {f"model.{name}": value for name, value in self.trial.items()}
        images, texts, scale = functional_call(self.encode, trial, (images, texts))
        return self._memory_losses(images[image_index], texts[caption], batch, scale)

    def _memory_losses(self, images: Tensor, texts: Tensor, batch: Batch, scale: Tensor) -> tuple[Tensor, ...]:
        """Two separate batches: image-keyed entries are not negatives of caption-keyed ones."""
        captions = batch.memory_caption_ids
        halves = [rows.chunk(2) for rows in (images, texts, batch.memory_image_ids)]
        halves.append((None, None) if captions is None else captions.chunk(2))
        return tuple(self._losses(*half, scale) for half in zip(*halves, strict=True))

    def _losses(
        self, images: Tensor, texts: Tensor, image_ids: Tensor, caption_ids: Tensor | None, scale: Tensor
    ) -> Tensor:
        of_images, of_captions = self.config.same_image, self.config.same_caption
        with torch.autocast(images.device.type, enabled=False):
            return contrastive_losses(
                images, texts, scale, image_ids, of_images, caption_ids=caption_ids, caption_mode=of_captions
            )

    def _copy_base_moments(self) -> None:
        for base, trial in zip(_parameters(self.optimizer), _parameters(self.trial_optimizer), strict=True):
            moments = self.optimizer.state.get(base, {})
            self.trial_optimizer.state[trial] = {name: tensor.clone() for name, tensor in moments.items()}

    def _modes_agree(self, batch: Batch) -> bool:
        """Whether a forward pass in training mode equals one in inference mode to the bit, on every process."""
        device = batch.image_index.device
        buffers = [buffer.clone() for buffer in self.model.buffers()]
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            training = self.encode(batch.images, batch.texts)
        self.model.eval()
        inference = self.encode(batch.images, batch.texts)
        self.model.train()
        with torch.no_grad():
            for buffer, value in zip(self.model.buffers(), buffers, strict=True):
                buffer.copy_(value)
        agree = all(torch.equal(one, other) for one, other in zip(training, inference, strict=True))
        return bool(gather_constant(torch.tensor([agree], device=device)).all())

    # State

    def state_dict(self) -> dict[str, Tensor]:
        """Moments of the trial optimiser, `trial.<parameter>.<moment>`, and whether the forward pass is shared.

        If they are in parts, all processes have to call this: they are put together.
        """
        own = self.trial if self.config.trial_moments == "own" else {}
        state = {
            f"trial.{name}.{moment}": put_together(tensor, value) if self.is_sliced and tensor.ndim else tensor
            for name, value in own.items()
            for moment, tensor in self.trial_optimizer.state.get(self._trained_trial[value], {}).items()
        }
        if self.shares_forward is not None:
            state["shares_forward"] = torch.tensor(self.shares_forward)
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load a `state_dict()`."""
        if "shares_forward" in state:
            self.shares_forward = bool(state["shares_forward"])
        for name, value in self.trial.items():
            prefix = f"trial.{name}."
            moments = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
            if moments:  # "step" stays where torch keeps it: on the CPU unless the optimiser is fused
                fused = value.is_cuda and bool(self.trial_optimizer.defaults.get("fused"))
                self.trial_optimizer.state[self._trained_trial[value]] = {
                    key: tensor.clone() if key == "step" and not fused else tensor.to(value.device, copy=True)
                    for key, tensor in self._cut(moments, value).items()
                }

    def _cut(self, moments: dict[str, Tensor], value: Tensor) -> dict[str, Tensor]:
        if not self.is_sliced:
            return moments
        return {key: cut(tensor, value) if tensor.ndim else tensor for key, tensor in moments.items()}


class _Encode(nn.Module):
    """What `functional_call` runs under other weights: images and captions to embeddings and the scale."""

    def __init__(self, model: nn.Module, chunks: Chunks | None):
        super().__init__()
        self.model, self.chunks = model, chunks

    def forward(
        self, images: dict[str, Tensor], texts: dict[str, Tensor]
    ) -> tuple[Tensor | None, Tensor | None, Tensor]:
        return (
            self._rows(self.model.encode_images, images),
            self._rows(self.model.encode_texts, texts),
            self.model.head.scale(),
        )

    def _rows(self, encode: Callable[..., Tensor], inputs: dict[str, Tensor]) -> Tensor | None:
        return in_chunks(encode, inputs, self.chunks) if len(next(iter(inputs.values()))) else None


def _pick(inputs: dict[str, Tensor], keys: Iterable[str], prefix: str = "") -> dict[str, Tensor]:
    return {key: inputs[prefix + key] for key in keys if prefix + key in inputs}


def _trial_optimizer(
    optimizer: torch.optim.Optimizer, trial_of: dict[Tensor, Tensor], moments: str
) -> torch.optim.Optimizer:
    """An optimiser like the real one over the trial parameters, group by group; in slices, if that one is."""
    groups = [
        {**group, "params": [trial_of[whole_of(value)] for value in group["params"]]}
        for group in optimizer.param_groups
    ]
    if moments == "none":
        return torch.optim.SGD([{"params": group["params"], "lr": group["lr"]} for group in groups])
    make = partial(type(optimizer), lr=optimizer.defaults["lr"], fused=optimizer.defaults.get("fused"))
    return over_slices(groups, make) if is_sliced(optimizer) else make(groups)


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
