"""`training:` section of a recipe."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator, model_validator

from clip_itm.section import Section, Seed

LARGEST_DROP = 600  # rsum goes to 600
Decay = Annotated[float, Field(ge=0, lt=1)]


class GuardSection(Section):
    """What a run does where its model forgets what it could before training."""

    metric: str = Field("rsum", description="on val, such as rsum or t2i_r1; or zero_shot: top-1 accuracy on classes")
    drop: Annotated[float, Field(ge=0, le=LARGEST_DROP)] = Field(
        description="how far the metric may lie below its value at step 0, in its own points"
    )
    patience: PositiveInt = Field(1, description="so many evaluations in a row have to lie below it")
    action: Literal["warn", "lower_rate", "stop"] = Field(
        "warn", description="each time that is so: say it, multiply the learning rate by rate_factor, or end the run"
    )
    rate_factor: Annotated[float, Field(gt=0, lt=1)] = Field(0.1, description="of action lower_rate, from then on")
    classes: str | None = Field(
        None, min_length=1, description="folder with a subfolder of photos for each class, for metric zero_shot"
    )

    @model_validator(mode="after")
    def _every_option_does_something(self):
        if self.action != "lower_rate" and self.rate_factor != type(self).model_fields["rate_factor"].default:
            raise ValueError(f"rate_factor: action {self.action} leaves the learning rate as it is; leave it out")
        if (self.metric == "zero_shot") != (self.classes is not None):
            raise ValueError("classes are the photos that metric zero_shot is measured on: set both, or neither")
        return self


class TrainingSection(Section):
    """One run. Batch sizes count pairs over all processes, so that a recipe means the same on one GPU and on eight."""

    epochs: PositiveInt = 5
    max_steps: PositiveInt | None = Field(None, description="stop after so many optimiser steps (a smoke run)")
    batch_size: PositiveInt = Field(256, description="pairs of one contrastive batch, over all processes")
    batches: Literal["random", "unique", "grouped"] = Field(
        "random",
        description="random pairs; no photo twice in a batch; or a photo once with captions_per_image captions",
    )
    captions_per_image: PositiveInt = Field(5, description="grouped batches only")
    unique_captions: bool = Field(
        False, description="with batches: unique, no caption twice in a batch either, under whatever photo it stands"
    )
    gradient_accumulation_steps: PositiveInt = Field(1, description="contrastive batches per optimiser step")
    learning_rate: Annotated[float, Field(gt=0, le=1e6)] = 1e-5
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="each block below the top learns this much slower than the one above it"
    )
    lr_multipliers: dict[str, NonNegativeFloat] = Field(
        {},
        description="factors on the learning rate by the beginning of parameter names, the longest that fits counts: "
        "{head: 10, backbone.image_tower: 0.1}",
    )
    weight_decay: NonNegativeFloat = 0.2
    decay_all: bool = Field(True, description="decay norms, biases and the temperature too, as published fine-tunes do")
    betas: tuple[Decay, Decay] = (0.9, 0.98)
    epsilon: PositiveFloat = 1e-6
    schedule: Literal["cosine", "constant", "step", "per_epoch_plateau"] = Field(
        "cosine",
        description="after the warm-up; step: a tenth every decay_every epochs; per_epoch_plateau repeats an indexing "
        "bug of published code",
    )
    decay_every: PositiveInt = Field(15, description="epochs, for schedule: step")
    decay_at: tuple[PositiveInt, ...] = Field(
        (), description="for schedule: step, the epochs that begin with a tenth of the rate, instead of decay_every"
    )
    warmup: NonNegativeFloat = Field(0.1, description="optimiser steps (1 or more) or a share of all steps (below 1)")
    max_grad_norm: NonNegativeFloat = Field(0.0, description="clip the global gradient norm; 0: no clipping")
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="decay, by the optimiser step, of a moving average of the weights, which is then evaluated, chosen "
        "and saved (0.999); default: none",
    )
    precision: Literal["fp32", "bf16", "auto"] = Field(
        "auto", description="bf16 autocast over float32 weights; auto: bf16 where a GPU supports it"
    )
    activation_checkpointing: bool = False
    evaluate_every: PositiveInt | None = Field(
        None, description="optimiser steps between evaluations; default: an epoch"
    )
    save_every: PositiveInt | None = Field(
        None, description="optimiser steps between checkpoints; default: with every evaluation"
    )
    early_stopping_patience: PositiveInt | None = Field(
        None, description="stop after so many evaluations without a better rsum on val; default: never"
    )
    early_stopping_threshold: NonNegativeFloat = Field(
        0.0, description="by how much rsum has to grow, to count as better for early_stopping_patience"
    )
    guard: GuardSection | None = Field(
        None, description="against forgetting: watch a metric that must not fall below step 0; default: nobody does"
    )
    log_every: PositiveInt = Field(20, description="optimiser steps between log lines")
    trackers: tuple[Literal["auto", "tensorboard", "trackio", "wandb", "mlflow"], ...] = Field(
        ("auto",), description="auto: TensorBoard and trackio, as far as installed; []: none"
    )
    seed: Seed = Field(0, description="seed of weights, batches and dropout (noise has its own)")

    @model_validator(mode="after")
    def _captions_are_unique_in_unique_batches(self):
        if self.unique_captions and self.batches != "unique":
            raise ValueError(
                f"unique_captions does nothing with batches: {self.batches}; write batches: unique, or leave it out"
            )
        return self

    @field_validator("trackers", mode="before")
    @classmethod
    def _one_tracker_is_a_list(cls, value):
        return [value] if isinstance(value, str) else value
