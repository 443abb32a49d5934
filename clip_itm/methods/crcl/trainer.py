"""CRCL in training: labels that outlive the model, and pieces that each begin with the initial weights."""

import hashlib
import math
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from clip_itm.data.equal_captions import numbers_if_asked
from clip_itm.data.training_data import TrainingData
from clip_itm.distributed import is_same_everywhere
from clip_itm.evaluation.detection import auc
from clip_itm.methods.crcl.configuration import CrclHeadConfig
from clip_itm.methods.crcl.labels import (
    LabelStore,
    expected_probability,
    fitting_temperature,
    label_filter,
    phase_of,
    piece_lengths,
)
from clip_itm.methods.crcl.loss import match, matching_probability
from clip_itm.methods.mixture import fit_mixture
from clip_itm.methods.pair_losses import equal_captions, seeded_batches
from clip_itm.reading import reading
from clip_itm.similarity.cosine import Cosine
from clip_itm.training.clean_probability import CleanProbability
from clip_itm.training.configuration import TrainingSection
from clip_itm.training.encode import scoring
from clip_itm.training.encoder import Encoder
from clip_itm.training.schedule import warmup_steps
from clip_itm.training.sharding import load_weights
from clip_itm.training.trainer import PairTrainer
from clip_itm.visible import counted

STATE = "labels.safetensors"
DEAD = 0.9  # with this fraction of labels below the threshold, the active term has practically no effect


class CrclTrainer(PairTrainer):
    """A `PairTrainer` that keeps a label per training pair and begins every piece with the initial weights.

    `first_labels` gives the labels [N] at the start, or None for ones; `is_clean` bool [N] is the truth about the
    training pairs if it is known, for the log only; `noise_sha256` names the pairs; `label`: `Pairs.label`.
    """

    def __init__(
        self,
        *args,
        first_labels: Callable[[], Tensor | None],
        is_clean: np.ndarray | None,
        noise_sha256: str,
        label: np.ndarray | None = None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.first_labels, self.is_clean, self.noise_sha256 = first_labels, is_clean, noise_sha256
        self.known = None if label is None else torch.tensor(label)
        self.head = self.model.head
        self.config = self.head.config
        if self.config.schedules and self._epochs() > self.section.epochs:
            raise ValueError(
                f"training.max_steps: {counted(self.args.max_steps, 'step is', 'steps are')} more than the "
                "pieces of head.schedules have "
                f"({self.section.epochs} epochs of {self._steps_per_epoch} steps); lower it"
            )
        self.schedules = self.config.schedules or (self._epochs() - self.config.frozen_epochs,)
        several = len(self.schedules) > 1
        self.initial_weights = (
            {name: value.cpu().clone() for name, value in self.model.state_dict().items()} if several else None
        )

    def _epochs(self) -> int:
        """Epochs of the run, which `training.max_steps` may shorten or lengthen."""
        epochs = math.ceil(max(self.args.max_steps, 0) / self._steps_per_epoch) or self.section.epochs
        return max(epochs, self.config.frozen_epochs + 1)

    def begin_epoch(self, epoch: int) -> None:
        super().begin_epoch(epoch)
        if self.head.labels is None:
            self.head.labels = LabelStore(len(self.train_dataset), self.first_labels(), self.known)
        self.head.phase = phase_of(epoch, self.schedules, self.config.frozen_epochs)
        within = self.state.global_step > epoch * self._steps_per_epoch  # a run that resumes in mid-epoch
        if self.head.phase.piece > 0 and self.head.phase.epoch_in_piece == 0 and not within:
            self._begin_piece()

    def _begin_piece(self) -> None:
        """Start with the initial weights, an empty optimiser state, no average and no best score; the labels stay."""
        load_weights(self.model, self.initial_weights)
        self.optimizer.optimizer.state.clear()
        if self.average is not None:
            self.average.restart()
        self.state.best_metric = self.state.best_global_step = self.state.best_model_checkpoint = None

    def lr_lambda(self, total_steps: int, warmup: int) -> Callable[[int], float]:
        """Every piece runs through the schedule from the beginning."""
        if len(self.schedules) == 1:
            return super().lr_lambda(total_steps, warmup)
        lengths = [
            epochs * self._steps_per_epoch for epochs in piece_lengths(self.schedules, self.config.frozen_epochs)
        ]
        starts = np.cumsum([0, *lengths[:-1]])
        rules = [
            super(CrclTrainer, self).lr_lambda(length, warmup_steps(self.section.warmup, length)) for length in lengths
        ]

        def multiplier(step: int) -> float:
            piece = int(np.searchsorted(starts, step, side="right")) - 1
            return rules[piece](step - int(starts[piece]))

        return multiplier

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        pretrained = self.model.backbone.initial_logit_scale is not None
        if self.state.global_step == 0 and pretrained and type(self.head.similarity) is Cosine:
            self._warn_of_temperature(metrics[f"{metric_key_prefix}_gap"])
        return metrics

    def _warn_of_temperature(self, gap: float) -> None:
        """Warn, before training, if a pretrained model's pairs cannot pass the threshold (docs/papers/crcl.md 9)."""
        config, candidates = self.config, self.config.softmax_set or self.section.contrastive_batch
        p = expected_probability(gap, config.temperature, candidates)
        if gap > 0 and p < max(config.label_threshold, 0.05):
            fitting = fitting_temperature(gap, candidates, max(0.5, config.label_threshold))
            warnings.warn(
                f"head.temperature {config.temperature:g} is too high for this model: its own captions lead by a "
                f"cosine of {gap:.3f}, which among {candidates} candidates gives a matching probability near {p:.3f}, "
                f"below head.label_threshold {config.label_threshold:g}; most labels would be cut to 0. Use "
                f"{fitting:.3f}, or fewer candidates (head.softmax_set)",
                stacklevel=2,
            )

    def end_epoch(self, epoch: int) -> None:
        store, phase = self.head.labels, self.head.phase
        labels = store.labels.cpu().numpy()
        if not is_same_everywhere(hashlib.sha256(labels.tobytes()).hexdigest(), self.args.device):
            raise ValueError(
                f"the processes have different labels after epoch {epoch + 1}; start again from a checkpoint"
            )
        if not np.isfinite(labels).all():
            raise ValueError(
                f"{int((~np.isfinite(labels)).sum())} labels are not finite after epoch {epoch + 1}: the model "
                f"diverged; lower training.learning_rate. Earlier checkpoints are in {self.args.output_dir}"
            )
        summary = {"method_epoch": epoch + 1, "piece": phase.piece, "label_mean": float(labels.mean())}
        summary |= {"label_zero": store.share_zero}
        summary |= {f"label_share_{bin}": fraction for bin, fraction in enumerate(store.histogram())}
        if self.is_clean is not None:
            for name, scores in (("label", labels), ("probability", store.probabilities.cpu().numpy())):
                known = ~np.isnan(scores)
                if (value := auc(scores[known], self.is_clean[known])) is not None:
                    summary[f"{name}_auc"] = value
        self.log(summary)
        dead = float((labels < self.config.label_threshold).mean())
        if (phase.replaces or not phase.frozen) and dead > DEAD:
            warnings.warn(
                f"{100 * dead:.0f} % of the labels are below head.label_threshold {self.config.label_threshold:g} "
                f"after epoch {epoch + 1}: the loss of matched pairs is practically off, and a label at 0 returns only "
                "with a large matching probability (docs/heads.md). Lower head.temperature, set a smaller "
                "head.softmax_set or training.batch_size, or lengthen head.frozen_epochs",
                stacklevel=2,
            )

    # Checkpoints

    def save_method_state(self, folder: Path) -> None:
        save_file(self.head.labels.state_dict(), folder / STATE)

    def load_method_state(self, folder: Path) -> None:
        self.head.labels = LabelStore(len(self.train_dataset), known=self.known)
        with reading(folder / STATE, "the labels of these training pairs"):
            self.head.labels.load_state_dict(load_file(folder / STATE))

    def clean_probability(self) -> CleanProbability | None:
        """From the latest matching probabilities p, not from the labels, which rank worse and are mostly small.

        A mixture of two components on -log p says where right pairs end and wrong ones begin.
        """
        if self.head.labels is None:
            return None
        labels, p = (values.cpu().numpy() for values in (self.head.labels.labels, self.head.labels.probabilities))
        seen = ~np.isnan(p)
        losses = -np.log(np.maximum(p[seen], np.finfo(np.float32).tiny))
        values, ranking = labels.copy(), np.where(seen, p, labels)
        if len(np.unique(losses)) < 2:
            warnings.warn(
                "all matching probabilities are the same: this run says nothing about its pairs", stacklevel=2
            )
            return None
        values[seen] = fit_mixture(losses, self.section.seed).monotone_clean_posterior(losses)
        return CleanProbability(
            values=values.clip(0, 1),
            ranking=ranking,
            method="mixture of two components on CRCL's matching probabilities of the last epoch (-log p)",
            noise_sha256=self.noise_sha256,
        )


def first_labels(
    head: CrclHeadConfig,
    training: TrainingSection,
    data: TrainingData,
    encoder: Encoder,
    found: CleanProbability | None = None,
) -> Tensor | None:
    """Labels [N] at the start, or None for ones.

    `head.initial_labels` "one": the weights of the data set, if it has any. "crossfit": the probabilities `found`,
    times these weights. "model": the matching probabilities under the model before training, times these weights, in
    seeded batches of as many candidates as in training.
    """
    pairs = data.train.pairs
    if head.initial_labels != "model":
        known = [values for values in (pairs.weight, None if found is None else found.values) if values is not None]
        return torch.tensor(np.prod(known, axis=0)) if known else None
    embeddings = encoder.encode(data.train)
    source, image_index = torch.from_numpy(data.noise.source), torch.from_numpy(pairs.image)
    labels = torch.empty(len(pairs))
    siblings = image_index if head.same_image == "mask" else None
    captions = numbers_if_asked(head, pairs, data.noise)
    candidates, score = head.softmax_set or training.contrastive_batch, scoring(encoder.model)
    for batch, _ in seeded_batches(len(pairs), candidates, training.seed):
        logits = score(embeddings.images[image_index[batch]], embeddings.texts[source[batch]]) / head.temperature
        targets = torch.arange(len(batch))
        mask = None
        if siblings is not None:
            mask = (siblings[batch, None] == siblings[None, batch]).fill_diagonal_(False)
        if captions is not None:
            equal = equal_captions(captions[batch], pairs.image[batch])
            mask = equal if mask is None else mask | equal
        labels[batch] = matching_probability(match(logits, targets, mask), match(logits.T, targets, mask))
    if pairs.weight is not None:
        labels *= torch.tensor(pairs.weight)
    return label_filter(labels, head.label_threshold)
