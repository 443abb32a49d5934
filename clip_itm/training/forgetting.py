"""`ForgettingGuard`: acts if a model forgets what it could do before training."""

import warnings

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from clip_itm.training.configuration import GuardSection

ACTIONS = {
    "warn": "the model forgets what it could do before",
    "lower_rate": "from here on the learning rate is {factor:g} times what the schedule says",
    "stop": "training stops here",
}


class ForgettingGuard(TrainerCallback, ExportableState):
    """Acts when a metric was more than `section.drop` below its value at step 0 in `section.patience` evaluations.

    Then it counts from 0 again. `first`: the value at step 0; `low`: how many evaluations in a row were below; `rate`:
    the factor on the learning rate so far; `acted`: step and value each time. All of these are in the state of a
    checkpoint, and so is `classes_sha256`, the hash of the photos of classes if the metric is measured on them.
    """

    def __init__(self, section: GuardSection, classes_sha256: str | None = None):
        self.section, self.classes_sha256 = section, classes_sha256
        self.first: float | None = None
        self.low, self.rate, self.acted = 0, 1.0, []

    @property
    def has_stopped(self) -> bool:
        return self.section.action == "stop" and bool(self.acted)

    def on_evaluate(self, args, state, control, metrics, optimizer=None, lr_scheduler=None, **kwargs):
        section = self.section
        value = self._value_of(metrics)
        if state.global_step == 0 or self.first is None:
            self.first = value
            return
        self.low = self.low + 1 if value < self.first - section.drop else 0
        if self.low < section.patience:
            return
        self.low = 0
        self.acted.append({"step": state.global_step, "value": value})
        if section.action == "lower_rate":
            self.rate *= section.rate_factor
            for group in optimizer.param_groups:  # the schedule has already set the next step's
                group["lr"] *= section.rate_factor
            lr_scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]  # which is what is logged
        control.should_training_stop = control.should_training_stop or section.action == "stop"
        if state.is_world_process_zero:
            warnings.warn(self._sentence(state.global_step, value), stacklevel=2)

    def _value_of(self, metrics: dict[str, float]) -> float:
        name = f"eval_{self.section.metric}"
        if name not in metrics:
            known = ", ".join(sorted(key.removeprefix("eval_") for key in metrics if key.startswith("eval_")))
            raise ValueError(
                f"training.guard.metric: {self.section.metric} is no metric of val; expected one of {known}"
            )
        return float(metrics[name])

    def _sentence(self, step: int, value: float) -> str:
        section, does = self.section, ACTIONS[self.section.action].format(factor=self.rate)
        times = f", {section.patience} evaluations in a row" if section.patience > 1 else ""
        return (
            f"{section.metric} is {value:.1f} at step {step}, more than {section.drop:g} below the {self.first:.1f} of "
            f"step 0{times}: {does} (training.guard)"
        )

    def report(self) -> dict:
        """For `results.json`: what was watched, its value at step 0, and what was done at which steps."""
        return self.section.model_dump() | {"first": self.first, "acted": self.acted}

    # Checkpoints

    def state(self) -> dict:
        own = {"first": self.first, "low": self.low, "rate": self.rate, "acted": list(self.acted)}
        return {"args": {}, "attributes": own | {"classes_sha256": self.classes_sha256}}

    def restore(self, state: dict) -> None:
        """Continue from what `state` returned. Raises ValueError if that was measured on other photos of classes."""
        if state["attributes"]["classes_sha256"] != self.classes_sha256:
            raise ValueError(
                f"training.guard.classes: {self.section.classes} is not what it was when this run began; put the "
                "photos back, or start anew with --overwrite"
            )
        for name, value in state["attributes"].items():
            setattr(self, name, value)
