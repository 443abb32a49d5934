"""From a recipe to everything a run needs: data, noise, processor, model, trainer. Cheap errors come first."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from accelerate.utils import set_seed  # that of transformers imports its trainer, which would delay an evaluation

from clip_itm.backbones.build import build_processor
from clip_itm.data.class_folder import ClassFolder, read_class_folder, without_broken
from clip_itm.data.equal_captions import caption_numbers
from clip_itm.data.image_cache import ImageCache
from clip_itm.data.load import image_checker, load_splits, require_readable
from clip_itm.data.load_noise import load_noise
from clip_itm.data.marked_training import with_marks
from clip_itm.data.noise import CaptionNoise, Neighbours
from clip_itm.data.rows import Split, hash_strings
from clip_itm.data.sampler import PairBatchSampler
from clip_itm.data.training_data import TrainingData
from clip_itm.data.workers import loader_processes
from clip_itm.distributed import is_same_everywhere, process_state
from clip_itm.evaluation.protocol import EmbeddedSplit
from clip_itm.evaluation.protocols import PROTOCOLS
from clip_itm.evaluation.report import FEWEST_IMAGES, too_few
from clip_itm.methods.clip.configuration import ClipHeadConfig
from clip_itm.methods.method import Method, method_of
from clip_itm.model import ItmModel
from clip_itm.offline import require_recipe
from clip_itm.processing import ItmProcessor
from clip_itm.recipe import Recipe
from clip_itm.runs.additions import NOTHING, Additions
from clip_itm.runs.batch_checks import require_negatives, require_pairs, warn_of_crowded_captions
from clip_itm.runs.models import load_model
from clip_itm.runs.neighbours import embeddings_of_images, kept_nearest_images, mean_regions
from clip_itm.runs.provenance import Provenance, describe_run
from clip_itm.runs.start import started_model
from clip_itm.runs.trackers import available_trackers
from clip_itm.training.encoder import Encoder, autocast_dtype


def final_split(recipe: Recipe, splits: dict[str, Split]) -> Split:
    """The split of the final table: test, or val if the source has no test. Warns if it is too small."""
    for name in (recipe.evaluation.split, "val"):
        if name in splits:
            if len(splits[name]) < FEWEST_IMAGES and process_state().is_main_process:
                warnings.warn(too_few(name, len(splits[name])), stacklevel=1)
            return splits[name]
    raise ValueError(f"data: the source {recipe.data.source!r} has neither test nor val (found: {', '.join(splits)})")


def require_splits(recipe: Recipe, splits: dict[str, Split]) -> None:
    for name in ("train", "val"):
        if name not in splits:
            raise ValueError(
                f"data: the source {recipe.data.source!r} has no {name} split here (found: {', '.join(splits)}); "
                "training needs train, and val to choose the best checkpoint" + recipe.data.missing_split_advice
            )


def load_data(recipe: Recipe) -> TrainingData:
    """Splits, noise and readable images. Raises ValueError naming file, row or key before any model is built."""
    data = load_pairs(recipe)
    data.image_cache = prepare_images(recipe, data.splits)
    return data


def load_pairs(recipe: Recipe) -> TrainingData:
    """Splits and noise, before images are decoded: the same ones in every process."""
    state = process_state()
    with state.main_process_first():
        splits = load_splits(recipe.data)
    require_splits(recipe, splits)
    own = hash_strings(pa.array([split.sha256 for split in splits.values()]))
    if not is_same_everywhere(own, state.device):
        raise ValueError(
            f"data: the processes of this run do not find the same photos and captions (process {state.process_index}: "
            f"{', '.join(f'{name} {split.sha256[:12]}' for name, split in splits.items())}); all need the same folders"
        )
    splits, noise = with_marks(splits, noise_of(recipe, splits), recipe.data.marks)
    if not is_same_everywhere(noise.sha256, state.device):
        raise ValueError(
            "noise: the processes of this run draw other captions, because their photos have other features; draw the "
            "noise once (clip-itm noise make) and name the file in noise.file"
        )
    return TrainingData(splits, noise)


def noise_of(recipe: Recipe, splits: dict[str, Split]) -> CaptionNoise:
    """The captions that the training pairs get: the one way from a recipe to its noise.

    At level "neighbour" the training photos are encoded, unless their features are kept already.
    """
    return load_noise(recipe.noise, splits["train"].pairs, lambda: _neighbours(recipe, splits))


def _neighbours(recipe: Recipe, splits: dict[str, Split]) -> Neighbours:
    section, train = recipe.noise, splits["train"]
    folder = recipe.data.cache_folder / "features"
    if section.model is not None:
        vectors, model = embeddings_of_images(_noise_encoder(recipe, splits), train), section.model
    elif train.regions is not None:
        vectors, model = mean_regions(train.regions, len(train)), "the mean of a photo's regions"
    else:
        features = _noise_encoder(recipe, splits).image_features(train)
        vectors = torch.from_numpy(np.array(features["image_features"]))
        model = " + ".join(recipe.base_models) or "random weights"
    return Neighbours(kept_nearest_images(vectors, section.neighbours, folder), model)


def _noise_encoder(recipe: Recipe, splits: dict[str, Split]) -> Encoder:
    """That of `noise.model`, else of the recipe's towers, whose random weights are the same for all seeds."""
    name = recipe.noise.model
    if name is None:
        training = recipe.training.model_copy(update={"seed": recipe.noise.seed})
        plain = recipe.model_copy(update={"head": ClipHeadConfig(), "training": training})  # it reads no tokens
        model, processor = make_model(plain, splits)
    else:
        try:
            model = load_model(name)
        except ValueError as error:
            raise ValueError(f"noise.model: {error}") from None
        processor = model.processor
        if model.backbone.config.reads_regions != recipe.data.gives_regions:
            raise ValueError(
                f"noise.model: {name} reads {'regions' if model.backbone.config.reads_regions else 'photos'}, which "
                f"data.source {recipe.data.source} does not give: leave noise.model out, or name another model"
            )
    images = prepare_images(recipe, splits)
    encoder = make_encoder(recipe, model.requires_grad_(False), processor, images)
    return replace(encoder, random_crop=1.0)  # features are kept on disk, even if training crops photos


def prepare_images(recipe: Recipe, splits: dict[str, Split]) -> ImageCache | None:
    """Raise `BrokenImagesError` unless all images of `splits` are readable; a later call does not decode them again.

    Returns the cache of resized images that `data.cache_images` asks for, complete for `splits`.
    """
    if recipe.data.cache_images is None and (recipe.data.skip_broken or not recipe.data.reads_images):
        return None  # broken ones were found while the splits were loaded, or no images are read
    with process_state().main_process_first():
        checker = image_checker(recipe.data)
        threads = recipe.data.num_workers if recipe.data.cache_images else 0
        require_readable(splits, checker, 0 if threads == "auto" else threads)
    return checker if isinstance(checker, ImageCache) else None


def guarded_classes(recipe: Recipe) -> ClassFolder | None:
    """The class photos that `training.guard` watches, if any. Raises ValueError for a folder without such photos."""
    guard = recipe.training.guard
    if guard is None or guard.classes is None:
        return None
    with process_state().main_process_first():
        return without_broken(read_class_folder(guard.classes), recipe.data)


def make_sampler(recipe: Recipe, train: Split, noise: CaptionNoise | None = None) -> PairBatchSampler:
    """The batches of a recipe; `noise`: the captions of the pairs, if they matter (default: their own)."""
    training, state = recipe.training, process_state()
    captions = None
    if training.unique_captions:
        captions = caption_numbers(train.pairs, noise or CaptionNoise.clean(train.pairs))
    try:
        return PairBatchSampler(
            train.pairs.image,
            mode=training.batches,
            batch_size=training.contrastive_batch,
            captions_per_image=training.captions_per_image,
            seed=training.seed,
            rank=state.process_index,
            world_size=state.num_processes,
            pair_caption=captions,
        )
    except ValueError as error:
        if training.accumulate == "separate":
            raise
        raise ValueError(
            f"{error} (with training.accumulate: cached, training.gradient_accumulation_steps "
            f"{training.gradient_accumulation_steps} times as many pairs are one batch)"
        ) from None


def make_model(recipe: Recipe, splits: dict[str, Split]) -> tuple[ItmModel, ItmProcessor]:
    """The model at step 0 and its processor; weights that are not pretrained come from `training.seed`."""
    if recipe.start_from is not None:
        set_seed(recipe.training.seed)
        with process_state().main_process_first():
            model, processor = started_model(recipe.backbone, recipe.head, recipe.start_from)
        return model.to(process_state().device), processor
    captions = splits["train"].pairs.captions.to_pylist() if "train" in splits else None
    processor = build_processor(recipe.backbone, captions)
    set_seed(recipe.training.seed)
    with process_state().main_process_first():
        model = ItmModel.from_backbone(recipe.backbone, recipe.head, processor)
    return model.to(process_state().device), processor


def make_encoder(
    recipe: Recipe, model: ItmModel, processor: ItmProcessor, image_cache: ImageCache | None = None
) -> Encoder:
    """Embeddings of any split as the recipe says, under the current weights of `model`."""
    return Encoder(
        model,
        processor,
        cache_folder=recipe.data.cache_folder / "features",
        batch_size=recipe.evaluation.batch_size,
        num_workers=loader_processes(recipe.data.num_workers, process_state().device.type == "cuda"),
        precision=autocast_dtype(recipe.training.precision),
        random_crop=recipe.data.random_crop,
        image_cache=image_cache,
    )


def saved_encoder(folder: Path, recipe: Recipe, image_cache: ImageCache | None) -> Encoder:
    """The same with the model and processor in `folder`."""
    model = ItmModel.from_pretrained(folder).to(process_state().device)
    return make_encoder(recipe, model, ItmProcessor.from_pretrained(folder), image_cache)


def check_protocols(recipe: Recipe, split: Split) -> None:
    """ValueError if a protocol is not defined for this split."""
    pairs = split.pairs
    embeddings = EmbeddedSplit(
        torch.empty(len(split), 0),
        torch.empty(len(pairs), 0),
        torch.from_numpy(pairs.image),
        pairs.image_ids.to_pylist(),
        pairs.caption_ids.to_pylist(),
    )
    for name in recipe.evaluation.protocols:
        PROTOCOLS[name].select(embeddings)


class Prepared(NamedTuple):
    """What is known of a run before a model is built."""

    data: TrainingData
    sampler: PairBatchSampler
    method: Method
    provenance: Provenance


def prepare(recipe: Recipe, additions: Additions = NOTHING) -> Prepared:
    """Check all that can be checked before a model is built."""
    available_trackers(recipe.training.trackers)
    require_recipe(recipe)
    require_pairs(recipe)
    data = load_pairs(recipe)
    check_protocols(recipe, final_split(recipe, data.splits))
    method = method_of(recipe.head)
    method.open(data.noise, data.train.pairs)
    sampler = make_sampler(recipe, data.train, data.noise)
    warn_of_crowded_captions(sampler, data.train.pairs, data.noise)
    require_negatives(recipe, sampler)
    for caution in (method.caution(recipe.random_part), recipe.head.caution(recipe.training)):
        if caution is not None:
            warnings.warn(caution, stacklevel=1)
    data.classes = guarded_classes(recipe)
    data.image_cache = prepare_images(recipe, data.splits)  # minutes of decoding come last
    found = describe_run(recipe, data.splits, data.noise, method.provenance, additions.names)
    return Prepared(data, sampler, method, found)
