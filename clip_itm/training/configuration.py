"""`training:` section of a recipe."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator, model_validator

from clip_itm.section import Section, Seed

LARGEST_DROP = 600  # rsum goes to 600
Decay = Annotated[float, Field(ge=0, lt=1)]


class GuardSection(Section):
    """What a run does if its model forgets what it could do before training."""

    metric: str = Field("rsum", description="on val, such as rsum or t2i_r1; or zero_shot: top-1 accuracy on classes")
    drop: Annotated[float, Field(ge=0, le=LARGEST_DROP)] = Field(
        description="how far the metric may drop below its value at step 0, in its own points"
    )
    patience: PositiveInt = Field(1, description="how many evaluations in a row have to be below that")
    action: Literal["warn", "lower_rate", "stop"] = Field(
        "warn", description="what happens then: warn, multiply the learning rate by rate_factor, or end the run"
    )
    rate_factor: Annotated[float, Field(gt=0, lt=1)] = Field(0.1, description="for action lower_rate, from then on")
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

    epochs: PositiveInt = Field(5, description="passes over the training pairs")
    max_steps: PositiveInt | None = Field(None, description="stop after this many optimiser steps (for a smoke run)")
    batch_size: PositiveInt = Field(256, description="pairs of one contrastive batch, over all processes")
    batches: Literal["random", "unique", "grouped"] = Field(
        "random",
        description="random pairs; no photo twice in a batch; or each photo once, with captions_per_image captions",
    )
    captions_per_image: PositiveInt = Field(5, description="grouped batches only")
    unique_captions: bool = Field(
        False, description="with batches: unique, no caption twice in a batch either, whichever photo it belongs to"
    )
    gradient_accumulation_steps: PositiveInt = Field(1, description="batches of batch_size pairs per optimiser step")
    accumulate: Literal["separate", "cached"] = Field(
        "separate",
        description="the gradient_accumulation_steps batches of a step: each with its own negatives, or all of them as "
        "one contrastive batch, of which the towers see batch_size pairs at a time (see cache_chunk)",
    )
    cache_chunk: PositiveInt | None = Field(
        None,
        description="gradient cache: in each process, the towers see this many photos or captions of a batch at a "
        "time, twice; the same gradients, in the memory of one such chunk; default: all at once",
    )
    learning_rate: Annotated[float, Field(gt=0, le=1e6)] = Field(1e-5, description="its peak, after the warm-up")
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="factor on the learning rate from each block to the one below it"
    )
    lr_multipliers: dict[str, NonNegativeFloat] = Field(
        {},
        description="factors on the learning rate by prefix of parameter names, of which the longest counts: "
        "{head: 10, backbone.image_tower: 0.1}",
    )
    weight_decay: NonNegativeFloat = Field(0.2, description="of AdamW, decoupled from the gradient")
    decay_all: bool = Field(True, description="decay norms, biases and the temperature too, as published fine-tunes do")
    betas: tuple[Decay, Decay] = Field((0.9, 0.98), description="decay of AdamW's two moments")
    epsilon: PositiveFloat = Field(1e-6, description="added to AdamW's denominator")
    schedule: Literal["cosine", "constant", "step", "per_epoch_plateau"] = Field(
        "cosine",
        description="after the warm-up; step: a tenth every decay_every epochs; per_epoch_plateau repeats an indexing "
        "bug of published code",
    )
    decay_every: PositiveInt = Field(15, description="epochs, for schedule: step")
    decay_at: tuple[PositiveInt, ...] = Field(
        (), description="for schedule: step, the epochs at which the rate drops to a tenth, instead of decay_every"
    )
    warmup: NonNegativeFloat = Field(0.1, description="optimiser steps (1 or more) or a share of all steps (below 1)")
    max_grad_norm: NonNegativeFloat = Field(0.0, description="clip the global gradient norm; 0: no clipping")
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="decay per optimiser step of a moving average of the weights (such as 0.999), which is evaluated, "
        "chosen and saved in their place; default: none",
    )
    precision: Literal["fp32", "bf16", "auto"] = Field(
        "auto", description="bf16 autocast over float32 weights; auto: bf16 where a GPU supports it"
    )
    activation_checkpointing: bool = Field(
        False, description="compute activations of the towers twice instead of keeping them: less memory, more time"
    )
    compile: bool = Field(
        False,
        description="compile the layers of the towers (torch.compile), which rounds differently and takes a while at "
        "the start; needs a C++ compiler, on a GPU Triton",
    )
    evaluate_every: PositiveInt | None = Field(
        None, description="optimiser steps between evaluations; default: an epoch"
    )
    save_every: PositiveInt | None = Field(
        None, description="optimiser steps between checkpoints; default: with every evaluation"
    )
    early_stopping_patience: PositiveInt | None = Field(
        None, description="stop after this many evaluations without a better rsum on val; default: never"
    )
    early_stopping_threshold: NonNegativeFloat = Field(
        0.0, description="by how much rsum has to grow to count as better for early_stopping_patience"
    )
    guard: GuardSection | None = Field(
        None,
        description="against forgetting: watch a metric that must not drop below its value at step 0; default: none",
    )
    log_every: PositiveInt = Field(20, description="optimiser steps between log lines")
    trackers: tuple[Literal["auto", "tensorboard", "trackio", "wandb", "mlflow"], ...] = Field(
        ("auto",), description="auto: TensorBoard and trackio, if installed; []: none"
    )
    seed: Seed = Field(0, description="seed of weights, batches and dropout (noise has its own)")

    @model_validator(mode="after")
    def _captions_are_unique_in_unique_batches(self):
        if self.unique_captions and self.batches != "unique":
            raise ValueError(
                f"unique_captions does nothing with batches: {self.batches}; write batches: unique, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _the_cache_does_something(self):
        if self.accumulate == "cached" and self.gradient_accumulation_steps == 1:
            raise ValueError(
                "accumulate: cached makes one batch of gradient_accumulation_steps batches, which is 1: raise it, or "
                "leave accumulate out"
            )
        if self.cache_chunk is not None and self.cache_chunk >= self.contrastive_batch:
            raise ValueError(
                f"cache_chunk {self.cache_chunk} does nothing with batches of {self.contrastive_batch} pairs "
                f"({self.names_of_batch}): write a smaller one, or leave it out"
            )
        return self

    @property
    def contrastive_batch(self) -> int:
        """Pairs that are each other's negatives, over all processes."""
        return self.batch_size * (self.gradient_accumulation_steps if self.accumulate == "cached" else 1)

    @property
    def names_of_batch(self) -> str:
        """The keys that make `contrastive_batch`, for messages."""
        return "batch_size" + (" x gradient_accumulation_steps" if self.accumulate == "cached" else "")

    @property
    def batches_per_step(self) -> int:
        """Contrastive batches of an optimiser step."""
        return self.gradient_accumulation_steps if self.accumulate == "separate" else 1

    def chunk(self, processes: int) -> int | None:
        """Rows that the towers see at a time in each of `processes` processes; None: all."""
        if self.cache_chunk is None and self.accumulate == "cached":
            return max(1, self.batch_size // processes)
        return self.cache_chunk

    @field_validator("trackers", mode="before")
    @classmethod
    def _one_tracker_is_a_list(cls, value):
        return [value] if isinstance(value, str) else value
