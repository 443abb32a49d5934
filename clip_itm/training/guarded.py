"""`GuardedTrainer`: a transformers Trainer that never saves diverged weights and never loses a good checkpoint."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list

from clip_itm.distributed import agree
from clip_itm.files import temporary_name
from clip_itm.training.checkpoints import last_complete_checkpoint, rotate
from clip_itm.training.folder import STATE, Watched, commit, failed_write
from clip_itm.training.sharded import ShardedTrainer
from clip_itm.training.sharding import local


class GuardedTrainer(ShardedTrainer):
    """Stops training with a ValueError that says what to do, in every process, and keeps the last checkpoint intact.

    It stops if loss, gradient or weights are no longer finite, a checkpoint cannot be written, or the run folder was
    deleted. `watched` is the run folder, in the first process, during training.
    """

    watched: Watched | None = None

    @property
    def run(self) -> Path:
        return Path(self.args.output_dir)

    def train(self, *args, **kwargs):
        self.watched = Watched(self.run) if self.is_world_process_zero() else None
        self._staging = Path(broadcast_object_list([str(self.run / temporary_name("checkpoint"))])[0])
        self._failure: ValueError | None = None  # of the checkpoint that is being written
        self._first_lost = torch.zeros(3, device=self.args.device)  # step, loss and norm when one was not finite
        try:
            return super().train(*args, **kwargs)
        finally:  # undo what accelerate did to the model: it would not prepare it again for another trainer's precision
            for name in ("forward", "_original_forward", "_is_accelerate_prepared"):
                self.model.__dict__.pop(name, None)

    def save_beside_weights(self, folder: Path) -> None:
        """Write everything else that belongs in a checkpoint to `folder` (called in the first process)."""

    # What is lost

    def _get_grad_norm(self, model, grad_norm=None):
        """See `Trainer`: called before every optimiser step. This also notes whether its loss and gradient are finite.

        The note stays on the device, so that no step has to wait for it; on a CPU it is read at once.
        """
        norm = super()._get_grad_norm(model, grad_norm)
        step = self.state.global_step + 1
        loss = self._tr_loss / (step - self._globalstep_last_logged)
        now = torch.stack([torch.full_like(loss, step), loss, norm.to(loss)])
        self._first_lost = torch.where((self._first_lost[0] > 0) | now.isfinite().all(), self._first_lost, now)
        if self._looks_at_every_step:
            self._require_finite()
        return norm

    @property
    def _looks_at_every_step(self) -> bool:
        return self.args.device.type == "cpu"

    def _maybe_log_save_evaluate(self, *args, **kwargs) -> None:
        if self.control.should_log or self.control.should_evaluate or self.control.should_save:
            self._require_finite()
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _require_finite(self) -> None:
        """Stop if loss or gradient were not finite in any step so far; called where the device is read anyway."""
        step, loss, norm = self._first_lost.tolist()
        if step:
            raise self.lost(f"the loss is {loss:.4g} and the norm of its gradient {norm:.4g}", int(step))

    def lost(self, what: str, step: int) -> ValueError:
        """The error to raise when training has diverged."""
        last = last_complete_checkpoint(self.run)
        kept = "no checkpoint had been saved yet" if last is None else f"{last} is the last good checkpoint"
        return ValueError(
            f"{what} at step {step}: training stops before such weights are saved ({kept}). Lower "
            "training.learning_rate, set training.max_grad_norm, or use training.precision fp32"
            + ("" if last is None else ", with another output_dir or --overwrite")
        )

    def _unsound(self) -> ValueError | None:
        """Why these weights must not be saved here, or None."""
        weights = [local(value).isfinite().all() for value in self.model.parameters()]
        statistics = [~value.isnan().any() for value in self.model.buffers()]
        if not torch.stack([*weights, *statistics]).all():
            return self.lost("weights are not finite", self.state.global_step)
        try:
            if self.watched is not None:
                self.watched.require()
        except ValueError as error:
            return error
        return None

    # Checkpoints

    def _get_output_dir(self, trial) -> str:
        """Where checkpoints are written before they are whole and get their names."""
        return str(self._staging)

    def _save_checkpoint(self, model, trial) -> None:
        """A checkpoint appears whole or not at all; only then an older one is deleted. Processes agree on failures."""
        name, self._failure = f"checkpoint-{self.state.global_step}", None
        agree(self._unsound())
        try:
            with self._noting_failures():
                super()._save_checkpoint(model, trial)
            agree(self._failure)
            with self._noting_failures():
                if self.args.should_save:
                    self._commit(name)
            agree(self._failure)
        finally:
            if self.args.should_save:
                shutil.rmtree(self._staging, ignore_errors=True)

    def _commit(self, name: str) -> None:
        best = self.state.best_global_step
        if best is not None:  # else the state would name the temporary folder
            self.state.best_model_checkpoint = str(self.run / f"checkpoint-{best}")
            self.state.save_to_json(str(self._staging / name / STATE))
        self.watched.require()
        commit(self.run, self._staging / name, name)
        rotate(self.run, best)

    def _save(self, output_dir: str | None = None, state_dict=None) -> None:
        with self._noting_failures():  # raised later, together: other processes wait for this one within `super`
            super()._save(output_dir, state_dict)
            if self.args.should_save:
                self.save_beside_weights(Path(output_dir or self.args.output_dir))

    @contextmanager
    def _noting_failures(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            reason = failed_write(error)
            if reason is None:
                raise
            last = last_complete_checkpoint(self.run)
            self._failure = self._failure or ValueError(
                f"{self.run}/checkpoint-{self.state.global_step} could not be written: {reason}. "
                + ("There is no checkpoint yet; " if last is None else f"{last.name} is whole, nothing else is lost; ")
                + "make room and run the same command again"
            )
