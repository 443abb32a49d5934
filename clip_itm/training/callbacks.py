"""When a run is evaluated and saved, and what a person sees of it."""

import math
import warnings
from collections.abc import Sequence

from transformers import ProgressCallback, TrainerCallback

from clip_itm.training.sharding import whole

LABEL_BINS = "label_share_"
LONG_WAIT, LARGE_SHARE = 60, 0.2  # seconds, and their share of training


class EpochCallback(TrainerCallback):
    """Tells the trainer about every epoch that begins (or continues, in a resumed run) and ends, and every step."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_epoch_begin(self, args, state, control, **kwargs):
        with whole(self.trainer.model):  # a method may look at its pairs
            self.trainer.begin_epoch(int(state.epoch or 0))

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.trainer.end_step()

    def on_epoch_end(self, args, state, control, **kwargs):
        self.trainer.end_epoch(math.ceil(state.epoch) - 1)  # a run may end within an epoch


class ReadingCallback(TrainerCallback):
    """Says once, after an epoch, what helps if training waits long for its photos."""

    def __init__(self, trainer, advice: str):
        self.trainer, self.advice = trainer, advice

    def on_epoch_end(self, args, state, control, **kwargs):
        waiting = self.trainer.waiting
        if self.advice and waiting.waited > LONG_WAIT and waiting.share > LARGE_SHARE:
            warnings.warn(
                f"{100 * waiting.share:.0f} % of the time of training goes into waiting for photos: {self.advice}",
                stacklevel=2,
            )
            self.advice = ""


class FinishCallback(TrainerCallback):
    """Saves once, after the evaluation, at the end of training and of every epoch that ends with an evaluation.

    A run that resumes from a checkpoint saved just before an evaluation would skip that evaluation. If a callback stops
    a run within an epoch, training ends there.
    """

    def __init__(self, steps_per_epoch: int):
        self.steps_per_epoch = steps_per_epoch
        self.evaluates = self.saves = False  # what the last step of an epoch leaves for the end of the epoch
        self.evaluated = self.saved = -1  # steps

    def on_evaluate(self, args, state, control, **kwargs):
        self.evaluated = state.global_step

    def on_save(self, args, state, control, **kwargs):
        self.saved = state.global_step

    def on_step_end(self, args, state, control, **kwargs):
        self.evaluates = self.saves = False
        at_end = state.global_step >= state.max_steps
        if at_end or state.global_step % self.steps_per_epoch == 0:
            always = at_end or args.eval_strategy == "epoch"
            self.evaluates, self.saves = always or control.should_evaluate, always or control.should_save
            control.should_evaluate = control.should_save = False

    def on_epoch_end(self, args, state, control, **kwargs):
        control.should_evaluate, control.should_save = self.evaluates, self.saves
        if control.should_training_stop:
            control.should_evaluate = state.global_step > self.evaluated
            control.should_save = control.should_evaluate or state.global_step > self.saved


class ConsoleCallback(ProgressCallback):
    """A progress bar, and log lines for people."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or self.training_bar is None or "train_runtime" in logs:
            return
        head = f"epoch {state.epoch or 0:6.2f}  step {state.global_step:6d}"
        if "eval_rsum" in logs:
            recalls = {
                direction: "/".join(f"{logs[f'eval_{direction}_r{k}']:.1f}" for k in (1, 5, 10))
                for direction in ("i2t", "t2i")
            }
            body = f"val  i2t {recalls['i2t']}  t2i {recalls['t2i']}  rsum {logs['eval_rsum']:.1f}"
            if "eval_zero_shot" in logs:
                body += f"  zero-shot {logs['eval_zero_shot']:.1f}"
        else:
            first = [name for name in ("loss", "grad_norm", "learning_rate") if name in logs]
            others = [name for name in logs if name not in ("epoch", "method_epoch", *first)]
            shown = first + [name for name in others if not name.startswith(LABEL_BINS)]
            body = "  ".join(f"{name} {logs[name]:.4g}" for name in shown)
            if fractions := [value for name, value in logs.items() if name.startswith(LABEL_BINS)]:
                body += f"  labels 0 {sparkline(fractions)} 1"
        self.training_bar.write(f"{head}  {body}")


def sparkline(fractions: Sequence[float]) -> str:
    """A histogram in one line of text: a bar for each fraction, the largest one full.

    Example:
        >>> sparkline([0.1, 0.2, 0.4])
        '▂▄█'
    """
    top = max(fractions) or 1
    return "".join(" ▁▂▃▄▅▆▇█"[math.ceil(8 * fraction / top)] for fraction in fractions)
