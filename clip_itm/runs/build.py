"""From the parts of a run to the trainer of its method."""

from collections.abc import Callable, Mapping
from dataclasses import fields

import numpy as np
from transformers import EarlyStoppingCallback, TrainerCallback, TrainingArguments

from clip_itm.data.batches import PairDataset
from clip_itm.data.equal_captions import numbers_if_asked, numbers_of
from clip_itm.data.pixels import KeptPixels, Pixels
from clip_itm.data.rows import Split
from clip_itm.data.sampler import PairBatchSampler
from clip_itm.data.tokens import CaptionTokens
from clip_itm.data.training_data import TrainingData
from clip_itm.data.workers import loader_processes
from clip_itm.distributed import process_state, say
from clip_itm.evaluation.equal_captions import EqualCaptions
from clip_itm.evaluation.protocol import EmbeddedSplit
from clip_itm.evaluation.protocols import PROTOCOLS
from clip_itm.evaluation.recall import recall_metrics
from clip_itm.methods.method import Method
from clip_itm.model import ItmModel
from clip_itm.recipe import Recipe
from clip_itm.runs.additions import NOTHING, Additions, ComputeMetrics
from clip_itm.runs.provenance import Provenance
from clip_itm.runs.publish import publish_run
from clip_itm.runs.trackers import available_trackers
from clip_itm.training.callbacks import ReadingCallback
from clip_itm.training.configuration import TrainingSection
from clip_itm.training.encode import Embeddings, scoring
from clip_itm.training.encoder import Encoder, autocast_dtype
from clip_itm.training.forgetting import ForgettingGuard
from clip_itm.training.trainer import PairTrainer
from clip_itm.training.zero_shot import require_vectors, zero_shot_accuracy


def make_trainer(
    recipe: Recipe,
    data: TrainingData,
    sampler: PairBatchSampler,
    method: Method,
    provenance: Provenance,
    encoder: Encoder,
    resuming: bool,
    additions: Additions = NOTHING,
    shards: bool = False,
) -> PairTrainer:
    """The trainer of the recipe's method; `shards`: whether it cuts the model into parts."""
    train, noise, model = data.train, data.noise, encoder.model
    images = None if encoder.image_inputs(train) is not None else len(train)
    on_gpu = process_state().device.type == "cuda"
    encoder.num_workers = loader_processes(recipe.data.num_workers, on_gpu, images)
    if encoder.num_workers:
        say(f"{encoder.num_workers} loader processes (data.num_workers: {recipe.data.num_workers})")
    else:
        encoder.kept = KeptPixels()  # every epoch and evaluation reads the same photos
    text_features = encoder.text_features(train)
    tokens = None
    if text_features is None:
        tokens = CaptionTokens(train.pairs.captions, encoder.processor, progress=process_state().is_main_process)
    dataset = PairDataset(
        train,
        noise,
        encoder.processor,
        image_features=encoder.image_features(train),
        text_features=text_features,
        tokens=tokens,
        image_cache=data.image_cache,
        random_crop=recipe.data.random_crop,
        seed=recipe.training.seed,
        caption_numbers=numbers_if_asked(recipe.head, train.pairs, noise),
        pixels=Pixels(encoder.processor),
        kept=encoder.kept,
    )
    zero_shot, captions = zero_shot_metric(recipe, data, encoder), val_captions(recipe, data.val)
    trainer = method.trainer(
        data,
        encoder,
        recipe.training,
        model=model,
        args=training_arguments(recipe, resuming, 0 if images is None else encoder.num_workers),
        section=recipe.training,
        train_dataset=dataset,
        eval_dataset=data.val.rows,
        sampler=sampler,
        encode_val=lambda: encoder.encode(data.val),
        score=lambda embeddings: val_metrics(model, embeddings, additions.compute_metrics, captions) | zero_shot(),
        write_provenance=lambda folder: provenance.write(folder, recipe),
        processor=encoder.processor,
        publish=publish_run,
        callbacks=[*early_stopping(recipe.training), *additions.callbacks],
        guard=guard_of(recipe.training, data),
        shards=shards,
    )
    if images is not None and process_state().is_main_process:
        trainer.add_callback(ReadingCallback(trainer, reading_advice(recipe, encoder.num_workers)))
    return trainer


def reading_advice(recipe: Recipe, num_workers: int) -> str:
    """How to make reading faster than with this recipe."""
    more = f"raise data.num_workers (now {num_workers})"
    if recipe.data.cache_images is not None:
        return more
    return f"set data.cache_images (the short side to which photos are resized once, such as 256), or {more}"


def val_captions(recipe: Recipe, val: Split) -> np.ndarray | None:
    """Numbers int64 [Nt], the same for equal captions of val; None unless `evaluation.same_caption` is set."""
    return numbers_of(val.pairs) if recipe.evaluation.same_caption else None


def val_metrics(
    model: ItmModel,
    embeddings: Embeddings,
    compute_metrics: ComputeMetrics | None = None,
    captions: np.ndarray | None = None,
) -> dict[str, float]:
    """Recall on val, and what `compute_metrics` adds; ValueError unless that is a dict of numbers under new names."""
    protocol = PROTOCOLS["all"] if captions is None else EqualCaptions(captions)
    (part,) = protocol.select(EmbeddedSplit(embeddings.images, embeddings.texts, embeddings.caption_image))
    ranks = protocol.rank(part, scoring(model), None, None)
    metrics = recall_metrics(ranks)
    if compute_metrics is None:
        return metrics
    added = compute_metrics(embeddings, ranks)
    if not isinstance(added, Mapping) or not all(
        isinstance(value, int | float | np.number) for value in added.values()
    ):
        raise ValueError(f"compute_metrics gave {added!r:.80}; expected a dict of numbers by name")
    if taken := sorted(metrics.keys() & added.keys()):
        raise ValueError(f"compute_metrics gives {', '.join(taken)}, which is there already: choose another name")
    return metrics | {str(name): float(value) for name, value in added.items()}


def zero_shot_metric(recipe: Recipe, data: TrainingData, encoder: Encoder) -> Callable[[], dict[str, float]]:
    """A function that returns the current accuracy on the class photos that the guard watches; {} without them."""
    classes = data.classes
    if classes is None:
        return dict
    require_vectors(encoder.model, "training.guard.classes")

    def measure() -> dict[str, float]:
        size, workers = recipe.evaluation.batch_size, encoder.num_workers
        arguments = encoder.model, encoder.processor, classes, size, workers, encoder.precision
        return {"zero_shot": zero_shot_accuracy(*arguments)}

    return measure


def guard_of(training: TrainingSection, data: TrainingData) -> ForgettingGuard | None:
    if training.guard is None:
        return None
    return ForgettingGuard(training.guard, None if data.classes is None else data.classes.sha256)


def early_stopping(training: TrainingSection) -> list[TrainerCallback]:
    if training.early_stopping_patience is None:
        return []
    return [EarlyStoppingCallback(training.early_stopping_patience, training.early_stopping_threshold)]


def training_arguments(recipe: Recipe, resuming: bool, num_workers: int) -> TrainingArguments:
    training, state = recipe.training, process_state()
    # renamed in transformers 5.23
    names = {field.name for field in fields(TrainingArguments)}
    checkpointing = next(name for name in ("activation_checkpointing", "gradient_checkpointing") if name in names)
    arguments = TrainingArguments(
        output_dir=recipe.output_dir,
        num_train_epochs=training.epochs,
        max_steps=training.max_steps or -1,
        per_device_train_batch_size=training.contrastive_batch // state.num_processes,
        gradient_accumulation_steps=training.batches_per_step,
        learning_rate=training.learning_rate,
        max_grad_norm=training.max_grad_norm,
        bf16=autocast_dtype(recipe.training.precision) is not None,
        **{checkpointing: training.activation_checkpointing},
        eval_strategy="steps" if training.evaluate_every else "epoch",
        eval_steps=training.evaluate_every,
        eval_on_start=not resuming,
        save_strategy="steps" if training.save_every or training.evaluate_every else "epoch",
        save_steps=training.save_every or training.evaluate_every or 500,
        metric_for_best_model="rsum",
        greater_is_better=True,
        logging_steps=training.log_every,
        logging_nan_inf_filter=False,
        report_to=available_trackers(training.trackers),
        project="clip-itm",
        run_name=recipe.output_dir,
        # there may be some: pooled features next to a similarity of tokens, what a gate of AAHR has not opened
        ddp_find_unused_parameters=True,
        seed=(training.seed + state.process_index) % 2**32,  # processes must not share their dropout masks
        dataloader_num_workers=num_workers,
        remove_unused_columns=False,
        use_cpu=state.device.type == "cpu",
        disable_tqdm=False,  # its default depends on the log level that an earlier run in this process has set
        log_level="error",  # what a user has to know comes through warnings
    )
    # several GPUs in one process would be DataParallel, which tears a batch apart; `accelerate launch` is the way
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments
