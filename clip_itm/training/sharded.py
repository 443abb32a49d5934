"""`ShardedTrainer`: a transformers Trainer for a model in parts, if the launch asks for it."""

from functools import partial

import torch
from torch import Tensor
from transformers import Trainer

from clip_itm.distributed import broadcast_buffers
from clip_itm.training.sharding import alone, average_uncut, clip_gradients, is_sharded, shard, whole_weights


class ShardedTrainer(Trainer):
    """With `shards`, cuts the model in parts when training begins, after loading the checkpoint to resume from.

    The model stays in parts. Checkpoints are those of a whole model, so that a run may resume in another launch.
    `computes_alone`: whether processes may have different numbers of passes in a step. `slices`: the model stays whole,
    and only the moments of its optimiser are in parts.
    """

    shards = False
    slices = False
    computes_alone = False

    def _prepare_for_training(self, *args, **kwargs):
        if self.shards:
            shard(self.model)
            # the model averages its gradients itself: no DistributedDataParallel around it
            self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)
        return super()._prepare_for_training(*args, **kwargs)

    def training_step(self, model, *args, **kwargs) -> Tensor:
        if not self.shards:
            return super().training_step(model, *args, **kwargs)
        broadcast_buffers(self.model)  # as DistributedDataParallel does
        if self.computes_alone:
            with alone(self.model):
                loss = super().training_step(model, *args, **kwargs)
        else:
            loss = super().training_step(model, *args, **kwargs)
        average_uncut(self.model)
        return loss

    def _clip_grad_norm(self, model):
        return clip_gradients(self.model, self.args.max_grad_norm) if self.shards else super()._clip_grad_norm(model)

    def _get_grad_norm(self, model, grad_norm=None):
        if self.shards and grad_norm is None:
            grad_norm = clip_gradients(self.model, torch.inf)
        return super()._get_grad_norm(model, grad_norm)

    # Checkpoints

    def _save(self, output_dir: str | None = None, state_dict=None) -> None:
        super()._save(output_dir, whole_weights(self.model) if is_sharded(self.model) else state_dict)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if (self.shards or self.slices) and not self.args.should_save:
            self.optimizer.state_dict()  # what the first process saves is put together by all
        super()._save_optimizer_and_scheduler(output_dir)
