"""`PairTrainer`: transformers' Trainer for batches of pairs, with retrieval as its evaluation."""

import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from datasets import Dataset
from huggingface_hub import CommitInfo
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, TrainerCallback, TrainingArguments
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK

from clip_itm.data.batches import PairDataset
from clip_itm.data.pixels import Pixels
from clip_itm.data.sampler import PairBatchSampler
from clip_itm.evaluation.spread import cosine_gap, mean_cosine
from clip_itm.processing import ItmProcessor
from clip_itm.similarity.cosine import unit
from clip_itm.training.average import UNAVERAGED, WeightAverage
from clip_itm.training.callbacks import ConsoleCallback, EpochCallback, FinishCallback
from clip_itm.training.clean_probability import CleanProbability
from clip_itm.training.compiled import compile_layers
from clip_itm.training.configuration import TrainingSection
from clip_itm.training.encode import Embeddings
from clip_itm.training.forgetting import ForgettingGuard
from clip_itm.training.gradient_cache import Chunks, encoding_in_chunks
from clip_itm.training.guarded import GuardedTrainer
from clip_itm.training.optimizer import make_optimizer
from clip_itm.training.schedule import lr_rule, warmup_steps
from clip_itm.training.sharding import whole
from clip_itm.training.stored import reading_state, require_weights
from clip_itm.training.waiting import Waiting

COLLAPSE_COSINE = 0.99


class PairTrainer(GuardedTrainer):
    """Trains an `ItmModel` on pairs.

    `train_dataset` makes whole batches, `sampler` says which pairs are in each (global batches, split over
    processes), `encode_val` gives the embeddings of the val split (`eval_dataset`, its rows) under the current
    weights and `score` turns them into a dictionary of metrics with "rsum", by which the best checkpoint is chosen.
    `write_provenance` adds recipe and hashes to a checkpoint folder; `publish` sends a finished run to the Hub.
    `callbacks` are added to those of this class, and so is `guard`, which may lower the learning rate. With `shards`
    the processes cut the model in parts.

    `average`: that of the weights during training, if `section.ema` asks for one; at the end the model has it.
    """

    average: WeightAverage | None = None

    def __init__(
        self,
        model,
        args: TrainingArguments,
        section: TrainingSection,
        train_dataset: PairDataset,
        eval_dataset: Dataset,
        sampler: PairBatchSampler,
        encode_val: Callable[[], Embeddings],
        score: Callable[[Embeddings], dict[str, float]],
        write_provenance: Callable[[Path], None],
        processor: ItmProcessor,
        publish: Callable[..., CommitInfo],
        callbacks: Sequence[TrainerCallback] = (),
        guard: ForgettingGuard | None = None,
        shards: bool = False,
    ):
        self.section, self.sampler, self.guard, self.shards = section, sampler, guard, shards
        self.encode_val, self.score, self.write_provenance = encode_val, score, write_provenance
        # not the Trainer's processing_class: that one would write its own token ids into the model's configuration
        self.publish, self.processor = publish, processor
        self._steps_per_epoch = math.ceil(len(sampler) / args.gradient_accumulation_steps)
        self._head_logs: dict[str, list[Tensor]] = defaultdict(list)
        self.pixels, self.waiting = Pixels(processor), Waiting()
        self._loader: PairLoader | None = None
        if section.compile:
            compile_layers(model.backbone)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            data_collator=_as_it_is,
            callbacks=[FinishCallback(self._steps_per_epoch), *([guard] if guard else []), *callbacks],
        )
        self.add_callback(EpochCallback(self))
        if self.pop_callback(DEFAULT_PROGRESS_CALLBACK):
            self.add_callback(ConsoleCallback())
        self.model_accepts_loss_kwargs = False  # the loss is a mean; accumulation divides it

    def train(self, *args, **kwargs):
        try:
            outcome = super().train(*args, **kwargs)
        finally:
            if self._loader is not None:
                self._loader.dismiss()
        if self.average is not None:
            self.average.exchange()
        self.average = None
        return outcome

    def averaged(self) -> AbstractContextManager:
        """Within it, the model has the averaged weights, if there are any."""
        return nullcontext() if self.average is None else self.average.in_place()

    def _init_training_state(self, max_steps, *args, **kwargs) -> tuple[int, int]:
        """Epochs and batches that are done. A run that was killed after its last step has nothing left to do."""
        epochs, batches = super()._init_training_state(max_steps, *args, **kwargs)
        done = self._had_stopped() or self.state.global_step >= max_steps
        return (math.ceil(max_steps / self._steps_per_epoch) if done else epochs, 0 if done else batches)

    def _had_stopped(self) -> bool:
        """Whether the resumed run had been ended early; if not, counts of evaluations continue where they were."""
        stopped = False
        for callback in self.callback_handler.callbacks:
            kept = self.state.stateful_callbacks.get(type(callback).__name__)
            if isinstance(callback, ForgettingGuard):
                callback.restore(kept)
                stopped |= callback.has_stopped
            elif isinstance(callback, EarlyStoppingCallback) and isinstance(kept, dict):
                callback.early_stopping_patience_counter = kept["attributes"]["early_stopping_patience_counter"]
                stopped |= callback.early_stopping_patience_counter >= callback.early_stopping_patience
        return stopped

    # Batches

    def get_train_dataloader(self) -> DataLoader:
        """Not prepared by Accelerate: the sampler already gives each process its rows of the global batch."""
        self._loader = PairLoader(
            self.train_dataset,
            batch_sampler=self.sampler,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            persistent_workers=self.args.dataloader_num_workers > 0,
            pin_memory=self.args.device.type == "cuda",
            generator=torch.Generator(),  # not the global one, whose state is restored when a run resumes
        )
        return self._loader

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        with self.waiting.reading():
            return super().get_batch_samples(epoch_iterator, num_batches, device)

    def _prepare_inputs(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Move inputs to the device without waiting, and normalise them there (later, chunk by chunk, with a cache)."""
        inputs = {name: tensor.to(self.args.device, non_blocking=True) for name, tensor in inputs.items()}
        for name in ("pixel_values", "memory_pixel_values"):
            if name in inputs and self.chunks is None:
                inputs[name] = self.pixels.normalize(inputs[name])
        return super()._prepare_inputs(inputs)

    # Optimisation

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = make_optimizer(self.model, self.section, self.slices)
        if self.section.ema is not None:
            self.average = WeightAverage(self.model, self.section.ema)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        if self.lr_scheduler is None:
            warmup = warmup_steps(self.section.warmup, num_training_steps)
            if warmup >= num_training_steps:
                warnings.warn(
                    f"training.warmup ({warmup} steps) is not shorter than the run ({num_training_steps} steps): the "
                    "rate never reaches training.learning_rate; use a share such as 0.1",
                    stacklevel=2,
                )
            rule, guard = self.lr_lambda(num_training_steps, warmup), self.guard
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer or self.optimizer, rule if guard is None else lambda step: guard.rate * rule(step)
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def lr_lambda(self, total_steps: int, warmup: int) -> Callable[[int], float]:
        """Multiplier of the learning rate by optimiser step."""
        return lr_rule(self.section, total_steps, warmup, self._steps_per_epoch, len(self.train_dataset))

    @property
    def chunks(self) -> Chunks | None:
        """The chunks of the gradient cache, if the recipe asks for one."""
        size = self.section.chunk(self.args.world_size)
        return None if size is None else Chunks(size, self.pixels.normalize)

    @property
    def computes_alone(self) -> bool:
        return self.chunks is not None

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        with encoding_in_chunks(self.model, self.chunks):
            output = model(**inputs)
        for name, value in output.logs.items():
            self._head_logs[name].append(value.detach())
        return (output.loss, output) if return_outputs else output.loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            for name, values in self._head_logs.items():
                logs[name] = torch.stack(values).float().mean().item()
            self._head_logs.clear()
            logs["waiting"] = self.waiting.take()
        super().log(logs, start_time)
        self.state.log_history[-1].pop("waiting", None)  # the same run has the same history, on any machine

    # What a method does besides the loss, for subclasses

    def begin_epoch(self, epoch: int) -> None:
        """Called before the batches of an epoch are drawn, and again when a run resumes within it."""
        self.train_dataset.set_epoch(epoch)
        self.model.head.epoch = epoch

    def end_step(self) -> None:
        """Called after every step of the optimiser."""
        if self.average is not None:
            self.average.follow()

    def end_epoch(self, epoch: int) -> None:
        """Called after the last step of an epoch, before its evaluation and checkpoint."""

    def save_method_state(self, folder: Path) -> None:
        """Write what the method must remember besides weights and optimiser to a checkpoint (first process)."""

    def load_method_state(self, folder: Path) -> None:
        """Read what `save_method_state` wrote, before `train(resume_from_checkpoint=...)`."""

    def clean_probability(self) -> CleanProbability | None:
        """How probable it is that each training pair is right, if the method estimates it while it trains."""

    # Resuming from a checkpoint: errors name the file that cannot be read

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        ignored = set(self.model._keys_to_ignore_on_save or ())
        with reading_state(resume_from_checkpoint, "model.safetensors"):
            require_weights(resume_from_checkpoint, self.model.state_dict().keys() - ignored)
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with reading_state(checkpoint, "optimizer.pt", "scheduler.pt"):
            super()._load_optimizer_and_scheduler(checkpoint)
        if self.average is not None and checkpoint is not None:
            with reading_state(checkpoint, UNAVERAGED):
                self.average.load(Path(checkpoint))

    def _load_scaler(self, checkpoint: str | None) -> None:
        with reading_state(checkpoint, "scaler.pt"):
            super()._load_scaler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with reading_state(checkpoint, "rng_state.pth", f"rng_state_{self.args.process_index}.pth"):
            super()._load_rng_state(checkpoint)

    # Evaluation and checkpoints

    def _save_checkpoint(self, model, trial) -> None:
        with self.waiting.paused():
            super()._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict=None) -> None:
        with self.averaged():
            super()._save(output_dir, state_dict)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.average is not None:
            state = self.average.state_dict()
            if self.args.should_save:
                self.average.save(Path(output_dir), state)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Recall on the val split under the current (averaged) weights; keys `eval_<metric>`."""
        with self.averaged(), whole(self.model), self.waiting.paused():
            metrics = self._evaluated(metric_key_prefix)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _evaluated(self, metric_key_prefix: str) -> dict[str, float]:
        embeddings = self.encode_val()
        if not (embeddings.images.isfinite().all() and embeddings.texts.isfinite().all()):
            raise self.lost("the embeddings are not finite", self.state.global_step)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in self.score(embeddings).items()}
        images, texts = (unit(self.model.head.similarity.vectors(x)) for x in (embeddings.images, embeddings.texts))
        metrics[f"{metric_key_prefix}_gap"] = cosine_gap(images, texts, embeddings.caption_image)
        for side, vectors in (("images", images), ("texts", texts)):
            cosine = mean_cosine(vectors)
            metrics[f"{metric_key_prefix}_{side}_cosine"] = cosine
            # (a shortlist's vectors, such as sums of tokens, may well be alike when the scores are not)
            if cosine > COLLAPSE_COSINE and self.model.head.similarity.is_dot_product:
                step = self.state.global_step
                advice = "; lower training.learning_rate or lengthen training.warmup" if step else " before training"
                warnings.warn(
                    f"the embeddings of {side} have collapsed at step {step}: mean cosine {cosine:.4f}{advice}",
                    stacklevel=2,
                )
        return metrics

    def _determine_best_metric(self, metrics, trial) -> bool:
        best = super()._determine_best_metric(metrics, trial)
        self.control.should_save = self.control.should_save or best  # the best weights must be on disk
        return best

    def push_to_hub(
        self,
        commit_message: str = "End of training",
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
    ):
        """What `clip-itm push` sends, the best model of the finished run with its card, in one commit.

        To `args.hub_model_id`, or to a repository with the name of the run. Returns the `CommitInfo`, on the first
        process only; raises ValueError for a run that is not finished.
        """
        if not self.is_world_process_zero():
            return None
        run = Path(self.args.output_dir)
        return self.publish(
            run,
            self.args.hub_model_id or run.absolute().name,
            message=commit_message,
            private=self.args.hub_private_repo if private is None else private,
            revision=revision,
            token=token or self.args.hub_token,
        )

    def save_beside_weights(self, folder: Path) -> None:
        self.processor.save_pretrained(folder)
        self.write_provenance(folder)
        self.save_method_state(folder)


class PairLoader(DataLoader):
    """Its processes live from epoch to epoch, until the data set gets memory entries that they do not know."""

    _known = None

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)

    def __iter__(self):
        if self.dataset.memory is not self._known:
            self._known = self.dataset.memory
            self.dismiss()
        return super().__iter__()

    def dismiss(self) -> None:
        """End its processes; the next epoch starts new ones."""
        self._iterator = None


def _as_it_is(batch):
    return batch
