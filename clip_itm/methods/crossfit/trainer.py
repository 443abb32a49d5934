"""Crossfit in training: models of folds judge the pairs, then a plain run trains on those that are believed."""

import copy
import gc
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from transformers.trainer_utils import IntervalStrategy

from clip_itm.calibration.estimate import Judgement, judge
from clip_itm.calibration.picture import draw_judgement, draw_reliability
from clip_itm.calibration.scores import FoldScores
from clip_itm.calibration.weights import residual
from clip_itm.calibration.words import share_in_words
from clip_itm.checksums import check_files
from clip_itm.data.sampler import PairBatchSampler
from clip_itm.data.training_data import TrainingData
from clip_itm.distributed import by_first, say
from clip_itm.files import save_arrays
from clip_itm.methods.crossfit.configuration import CrossfitHeadConfig
from clip_itm.methods.crossfit.folds import fold_of_images, judge_pairs, load_scores
from clip_itm.methods.crossfit.weights import from_judgement, from_mixture, from_truth, is_blind
from clip_itm.training.checkpoints import clear_half_written, last_complete_checkpoint
from clip_itm.training.clean_probability import CleanProbability
from clip_itm.training.encoder import Encoder
from clip_itm.training.folder import MANIFEST, PREPARED, delete, own_files, record, record_added
from clip_itm.training.sharding import load_weights, whole
from clip_itm.training.trainer import PairTrainer

WEIGHTS = "pair_weights.npz"
PICTURES = ("pair_scores.png", "pair_calibration.png")


class CrossfitTrainer(PairTrainer):
    """A `PairTrainer` that first finds how probable it is that each training pair is right, and then trains with that.

    What it works out is in `prepared/` of the run: the checkpoints of a fold's model, the scores of each fold, and at
    the end only the weights. `found`: weights from elsewhere, so that nothing is judged.
    """

    def __init__(self, *args, data: TrainingData, encoder: Encoder, found: CleanProbability | None, **kwargs):
        super().__init__(*args, **kwargs)
        self.data, self.encoder, self.found = data, encoder, found
        self.config: CrossfitHeadConfig = self.model.head.config

    @property
    def prepared(self) -> Path:
        return self.run / PREPARED

    def train(self, resume_from_checkpoint: str | None = None, **kwargs):
        if self.found is None:
            with same_random_state():
                self.found = self._find()
        self.found = replace(self.found, values=self.data.train.pairs.heeded(self.found.values))
        self._use(self.found)
        return super().train(resume_from_checkpoint, **kwargs)

    def begin_epoch(self, epoch: int) -> None:
        super().begin_epoch(epoch)
        if self.state.global_step == 0 and self.found.share is not None:
            share, low, high = self.found.share
            known = {} if self.found.is_weak else {"wrong_share": share, "wrong_share_low": low}
            self.log({**known, "wrong_share_high": high, **self._kept()})

    # What is believed

    def _find(self) -> CleanProbability:
        """The weights, found by the folds or by the model as it is; every process gets those of the first."""
        file = self.prepared / WEIGHTS
        found = by_first(lambda: CleanProbability.load(file) if file.is_file() else None)
        if broadcast_object_list([found is None])[0]:
            judged = self._judge_folds()
            found = by_first(lambda: self._estimate(judged))
            by_first(lambda: self._keep(found, file))
        return broadcast_object_list([found])[0]

    def _estimate(self, judged: list[tuple[FoldScores, np.ndarray | None]]) -> CleanProbability:
        sha256, seed = self.data.noise.sha256, self.section.seed
        if self.config.estimate == "truth":
            return from_truth(self.data.noise.is_clean(self.data.train.pairs), sha256)
        if self.config.estimate == "mixture":
            return from_mixture(judged, seed, sha256)
        folds = [scores for scores, _ in judged]
        judgement = judge(folds, len(self.data.train.pairs), seed, self.config.siblings, sha256)
        self._draw(judgement)
        return from_judgement(judgement)

    def _draw(self, judgement: Judgement) -> None:
        """Draw the scores and, if the truth is known, expected against observed; a failure does not end the run."""
        truth = self.data.noise.truth(self.data.train.pairs)
        try:
            record_added(self.run, *PICTURES)
            draw_judgement(judgement, self.run / PICTURES[0])
            if truth is not None:
                draw_reliability(judgement.weights, truth, self.run / PICTURES[1])
        except Exception as error:
            warnings.warn(f"the pictures {' and '.join(PICTURES)} failed ({error}); training goes on", stacklevel=2)

    def _use(self, found: CleanProbability) -> None:
        """Train with these weights, for as many steps as without them; if all are 1, exactly as without them."""
        config, weights = self.config, found.values
        self.model.head.current_loss = config.loss
        if config.loss == "auto":
            self.model.head.current_loss = "gce" if self._kept()["residual"] > config.largest_residual else "infonce"
        say(self._summary())
        if (weights == 1).all():
            return
        kept = np.flatnonzero(weights > config.smallest_weight)
        try:
            self.sampler = self.sampler.of(kept, num_batches=len(self.sampler))
        except ValueError:
            raise ValueError(
                f"{len(kept)} of {len(weights)} captions are believed to be right, which do not fill a batch of "
                f"{self.section.contrastive_batch} pairs: look at them (clip-itm audit of a plain run), lower "
                "training.batch_size, or use another head"
            ) from None
        self.model.head.belief = torch.from_numpy(weights).to(self.args.device)

    def _kept(self) -> dict[str, float]:
        """How many pairs are trained on, and the fraction of them, by weight, that is expected to be wrong.

        A weak judge drops no pairs; the fraction is then the largest that may be wrong.
        """
        weights = self.found.values.astype(np.float64)
        kept = weights[weights > self.config.smallest_weight]
        wrong = self.found.share[2] if self.found.is_weak else residual(kept)
        return {"kept_pairs": len(kept), "residual": wrong}

    def _summary(self) -> str:
        kept, count, loss = self._kept(), len(self.found.values), self.model.head.current_loss
        lines = []
        if self.found.share is not None:
            is_weak, are = self.found.is_weak, "look unrelated to their photos" if is_blind(self.found) else "are wrong"
            told = share_in_words(self.found.share, f"of the captions {are}", is_weak=is_weak)
            if is_weak or is_blind(self.found):
                either = "" if is_weak else "either they are, or "
                told += f": {either}the models that judge know too little (head.fold_epochs, pretrained towers)"
            lines.append(f"{told}; every pair counts fully" if (self.found.values == 1).all() else told)
        lines.append(
            f"training with {loss} on {kept['kept_pairs']} of {count} pairs, of which {100 * kept['residual']:.1f} %, "
            f"by weight, {'may' if self.found.is_weak else 'are expected to'} be wrong"
        )
        return "\n".join(lines)

    # Folds

    def _judge_folds(self) -> list[tuple[FoldScores, np.ndarray | None]]:
        """Scores of all pairs, each by a model that has not seen its image, and their losses for a mixture."""
        pair_image, folds = self.data.train.pairs.image, self.config.folds
        if self.config.estimate == "truth":
            return []
        if folds == 0:
            return [self._judge(np.arange(len(pair_image)), 0)]
        fold_of_pair = fold_of_images(len(self.data.train), folds, self.section.seed)[pair_image]
        samplers = [self._sampler_of(np.flatnonzero(fold_of_pair != fold)) for fold in range(folds)]
        trained = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        trained |= {name for name, _ in self.model.named_buffers()}
        weights = self.model.state_dict()
        first = {name: weights[name].cpu().clone() for name in weights if name in trained}
        judged = []
        for fold, sampler in enumerate(samplers):
            folder = self.prepared / f"fold-{fold}"
            scores = by_first(lambda folder=folder: load_scores(folder / "scores.npz"))
            if broadcast_object_list([scores is None])[0]:
                say(f"fold {fold + 1} of {folds}: training on the photos of the others")
                self._train_fold(fold, sampler, folder)
                scores = self._judge(np.flatnonzero(fold_of_pair == fold), fold)
                by_first(lambda folder=folder, scores=scores: self._keep_scores(folder, *scores))
                load_weights(self.model, first, strict=False)
            judged.append(scores)
        return judged

    def _judge(self, pairs: np.ndarray, fold: int) -> tuple[FoldScores, np.ndarray | None]:
        config, seed = self.config, self.section.seed + fold
        with_losses = config.estimate == "mixture"
        with whole(self.model):
            return judge_pairs(self.data, self.encoder, pairs, seed, config.candidates, with_losses)

    def _train_fold(self, fold: int, sampler: PairBatchSampler, folder: Path) -> None:
        """Train the model on the pairs of a sampler, from where an interrupted run left off."""
        by_first(lambda: self._open(folder))
        checkpoint = last_complete_checkpoint(folder)
        if checkpoint is not None:
            by_first(lambda: check_files(checkpoint))
        self.model.head.current_loss = self.config.fold_loss
        trainer = self._trainer_of(fold, sampler, folder)
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        del trainer
        gc.collect()  # it is part of a reference cycle and holds the moments of its optimiser

    def _sampler_of(self, pairs: np.ndarray) -> PairBatchSampler:
        try:
            return self.sampler.of(pairs)
        except ValueError:
            photos = len(np.unique(self.data.train.pairs.image[pairs]))
            batches = self.section.batches + (", unique_captions: true" if self.section.unique_captions else "")
            raise ValueError(
                f"head.folds: {self.config.folds}: a model that judges is trained on {len(pairs)} pairs of {photos} "
                f"photos, which do not fill a batch of {self.section.contrastive_batch} (training.batches: "
                f"{batches}); lower training.batch_size, or raise head.folds"
            ) from None

    def _trainer_of(self, fold: int, sampler: PairBatchSampler, folder: Path) -> PairTrainer:
        """A plain trainer of the same model: the schedule of the run over the epochs of a fold."""
        section, args = self.section, copy.copy(self.args)
        epochs = self.config.epochs_of_a_fold(section.epochs)
        fraction = epochs * len(sampler) / (section.epochs * len(self.sampler))
        steps = None if section.max_steps is None else max(1, round(section.max_steps * fraction))
        warmup = section.warmup if section.warmup < 1 else round(section.warmup * fraction)
        section = section.model_copy(update={"epochs": epochs, "max_steps": steps, "warmup": warmup})
        args.output_dir, args.num_train_epochs, args.max_steps = str(folder), epochs, steps or -1
        args.eval_strategy, args.eval_on_start, args.report_to = IntervalStrategy.NO, False, []
        args.seed = (args.seed + 1009 * (fold + 1)) % 2**32  # its own dropout, and another one in every process
        return PairTrainer(
            self.model,
            args,
            section,
            self.train_dataset,
            self.eval_dataset,
            sampler,
            self.encode_val,
            self.score,
            self.write_provenance,
            self.processor,
            self.publish,
            shards=self.shards,
        )

    # Files

    def _open(self, folder: Path) -> None:
        """Open the folder of a fold, and keep what an interrupted run completed in it."""
        folder.mkdir(parents=True, exist_ok=True)
        record_added(self.run, f"{PREPARED}/{folder.name}/{MANIFEST}")
        record(folder, ("recipe.yaml", "provenance.json"))
        clear_half_written(folder)
        self.write_provenance(folder)

    def _keep_scores(self, folder: Path, scores: FoldScores, losses: np.ndarray | None) -> None:
        """Save the scores in place of the fold's checkpoints."""
        record_added(self.run, f"{PREPARED}/{folder.name}/scores.npz")
        of_mixture = {} if losses is None else {"losses": losses}
        known = {name: value for name, value in asdict(scores).items() if value is not None}
        save_arrays(folder / "scores.npz", **of_mixture, **known)
        delete(folder)

    def _keep(self, found: CleanProbability, file: Path) -> None:
        """Save the weights in place of everything that led to them."""
        file.parent.mkdir(exist_ok=True)
        record_added(self.run, f"{PREPARED}/{file.name}")
        found.save(file)
        delete(self.run, [name for name in own_files(self.run) if name.startswith(f"{PREPARED}/fold-")])

    def save_method_state(self, folder: Path) -> None:
        self.found.save(folder / WEIGHTS)

    def load_method_state(self, folder: Path) -> None:
        self.found = CleanProbability.load(folder / WEIGHTS)

    def clean_probability(self) -> CleanProbability | None:
        return None if self.config.estimate == "truth" else self.found


@contextmanager
def same_random_state() -> Iterator[None]:
    """Within it, draws from the global generators leave no trace: their states are restored at the end."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with torch.random.fork_rng(devices):
        of_python, of_numpy = random.getstate(), np.random.get_state()
        try:
            yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)
