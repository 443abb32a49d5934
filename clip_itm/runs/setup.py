"""From a recipe to everything a run needs: data, noise, processor, model, trainer. Cheap errors come first."""

import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers import set_seed

from clip_itm.backbones.build import build_processor
from clip_itm.backbones.configuration import random_part
from clip_itm.data.batches import PairBatchSampler, rows_of
from clip_itm.data.image_cache import ImageCache
from clip_itm.data.load import demand_readable, has_photos, load_splits, photo_checker
from clip_itm.data.noise import CaptionNoise, load_noise
from clip_itm.data.rows import Pairs, Split, hash_strings
from clip_itm.data.sources.builder import cache_folder
from clip_itm.distributed import is_same_everywhere, process_state
from clip_itm.evaluation.protocols import PROTOCOLS, Gallery
from clip_itm.evaluation.report import FEWEST_PHOTOS, too_few
from clip_itm.methods.npc.bank import MemoryBank
from clip_itm.model import ItmModel
from clip_itm.offline import demand_recipe
from clip_itm.processing import ItmProcessor
from clip_itm.recipe import Recipe
from clip_itm.runs.batch_checks import demand_negatives, demand_pairs
from clip_itm.runs.provenance import Provenance, describe_run
from clip_itm.runs.trackers import available_trackers
from clip_itm.training.encode import Embeddings, PhotoInputs, encode_split
from clip_itm.training.feature_cache import caption_features, is_frozen, photo_features


@dataclass
class TrainingData:
    """The splits of a recipe, the captions its training pairs really got, and the batches they come in."""

    splits: dict[str, Split]
    noise: CaptionNoise
    image_cache: ImageCache | None = None
    bank: MemoryBank | None = None  # the one that the recipe names

    @property
    def train(self) -> Split:
        return self.splits["train"]

    @property
    def dev(self) -> Split:
        return self.splits["val"]


def final_split(recipe: Recipe, splits: dict[str, Split]) -> Split:
    """The split of the final table: test, or val where the source has no test. Warns of one that is too small."""
    for name in (recipe.evaluation.split, "val"):
        if name in splits:
            if len(splits[name]) < FEWEST_PHOTOS and process_state().is_main_process:
                warnings.warn(too_few(name, len(splits[name])), stacklevel=1)
            return splits[name]
    raise ValueError(f"data: the source {recipe.data.source!r} has neither test nor val (found: {', '.join(splits)})")


def demand_splits(recipe: Recipe, splits: dict[str, Split]) -> None:
    for name in ("train", "val"):
        if name not in splits:
            raise ValueError(
                f"data: the source {recipe.data.source!r} has no {name} split here (found: {', '.join(splits)}); "
                "training needs train, and val to choose the best checkpoint"
                + (
                    "; name one, such as --data.splits '{train: train, val: test}'"
                    if recipe.data.source == "hub"
                    else ""
                )
            )


def load_data(recipe: Recipe) -> TrainingData:
    """Splits, noise and readable photos. Raises ValueError naming file, row or key before any model is built."""
    data = load_pairs(recipe)
    data.image_cache = prepare_photos(recipe, data.splits)
    return data


def load_pairs(recipe: Recipe) -> TrainingData:
    """Splits and noise, before photos are decoded: the same ones in every process."""
    state = process_state()
    with state.main_process_first():
        splits = load_splits(recipe.data)
    demand_splits(recipe, splits)
    own = hash_strings(pa.array([split.sha256 for split in splits.values()]))
    if not is_same_everywhere(own, state.device):
        raise ValueError(
            f"data: the processes of this run do not find the same photos and captions (process {state.process_index}: "
            f"{', '.join(f'{name} {split.sha256[:12]}' for name, split in splits.items())}); all need the same folders"
        )
    return TrainingData(splits, load_noise(recipe.noise, splits["train"].pairs))


def prepare_photos(recipe: Recipe, splits: dict[str, Split]) -> ImageCache | None:
    """Find the photos of `splits` readable, or raise `BrokenPhotosError`; those of earlier calls are not decoded again.

    Gives the cache of resized photos that `data.cache_images` asks for, complete for `splits`.
    """
    if recipe.data.cache_images is None and (recipe.data.skip_broken or not has_photos(recipe.data)):
        return None  # found while the splits were loaded, or there is nothing to find
    with process_state().main_process_first():
        checker = photo_checker(recipe.data)
        demand_readable(splits, checker, recipe.data.num_workers if recipe.data.cache_images else 0)
    return checker if isinstance(checker, ImageCache) else None


def make_sampler(recipe: Recipe, train: Split) -> PairBatchSampler:
    training, state = recipe.training, process_state()
    return PairBatchSampler(
        train.pairs.image,
        mode=training.batches,
        batch_size=training.batch_size,
        captions_per_photo=training.captions_per_photo,
        seed=training.seed,
        rank=state.process_index,
        world_size=state.num_processes,
    )


def make_model(recipe: Recipe, splits: dict[str, Split]) -> tuple[ItmModel, ItmProcessor]:
    """The model at step 0 and its processor; weights that are not pretrained come from `training.seed`."""
    captions = splits["train"].pairs.captions.to_pylist() if "train" in splits else None
    processor = build_processor(recipe.backbone, captions)
    set_seed(recipe.training.seed)
    with process_state().main_process_first():
        model = ItmModel.from_backbone(recipe.backbone, recipe.head, processor)
    return model.to(process_state().device), processor


@dataclass
class Encoder:
    """Embeddings of any split under the current weights, from kept features where a tower is frozen."""

    recipe: Recipe
    model: ItmModel
    processor: ItmProcessor
    image_cache: ImageCache | None = None

    def __post_init__(self):
        self.frozen_images = is_frozen(self.model.backbone.image_blocks())
        self.frozen_texts = is_frozen(self.model.backbone.text_blocks())
        self._kept: dict[tuple[str, str], Any] = {}

    @classmethod
    def of_saved(cls, folder: Path, recipe: Recipe, image_cache: ImageCache | None) -> "Encoder":
        """That of the model and processor in `folder`."""
        model = ItmModel.from_pretrained(folder).to(process_state().device)
        return cls(recipe, model, ItmProcessor.from_pretrained(folder), image_cache)

    def photo_features(self, split: Split) -> dict[str, np.ndarray] | None:
        """Outputs of a frozen image tower by photo number; None where the tower trains, photos are cropped at random or
        the data are regions."""
        if split.regions is not None or not self.frozen_images or self.recipe.data.random_crop < 1:
            return None
        if ("photos", split.name) not in self._kept:
            self._kept["photos", split.name] = photo_features(
                self.model,
                split,
                self.processor,
                self._folder,
                self.recipe.evaluation.batch_size,
                self.recipe.data.num_workers,
                self.image_cache,
            )
        return self._kept["photos", split.name]

    def photo_inputs(self, split: Split) -> PhotoInputs | None:
        """What stands for the photos of `split` in the model's inputs; None where they are read."""
        if split.regions is not None:
            return split.regions.batch
        kept = self.photo_features(split)
        return None if kept is None else partial(rows_of, kept)

    def text_features(self, split: Split) -> np.ndarray | None:
        """Outputs of a frozen text tower [Nt, C]; None where the tower trains, or the head reads words."""
        if not self.frozen_texts or self.model.backbone.output_tokens:
            return None
        if ("captions", split.name) not in self._kept:
            self._kept["captions", split.name] = caption_features(
                self.model, split, self.processor, self._folder, self.recipe.evaluation.batch_size
            )
        return self._kept["captions", split.name]

    @property
    def _folder(self) -> Path:
        return cache_folder(self.recipe.data) / "features"

    def encode(self, split: Split) -> Embeddings:
        return encode_split(
            self.model,
            split.rows,
            split.pairs,
            self.processor,
            self.recipe.evaluation.batch_size,
            self.recipe.data.num_workers,
            autocast_dtype(self.recipe),
            self.photo_inputs(split),
            self.text_features(split),
            self.image_cache,
            None if split.regions is None else split.regions.caption_vectors,
        )


def autocast_dtype(recipe: Recipe) -> torch.dtype | None:
    """bfloat16 where the recipe and the device say so, over float32 weights; None for plain float32."""
    wanted = recipe.training.precision
    on_gpu = torch.cuda.is_available() and process_state().device.type == "cuda"
    if wanted == "bf16" or (wanted == "auto" and on_gpu and torch.cuda.is_bf16_supported()):
        return torch.bfloat16
    return None


def check_protocols(recipe: Recipe, split: Split) -> None:
    """ValueError where a protocol is not defined for this split."""
    pairs = split.pairs
    gallery = Gallery(
        torch.empty(len(split), 0),
        torch.empty(len(pairs), 0),
        torch.from_numpy(pairs.image),
        pairs.image_ids.to_pylist(),
        pairs.caption_ids.to_pylist(),
    )
    for name in recipe.evaluation.protocols:
        PROTOCOLS[name](gallery)


def prepare(recipe: Recipe) -> tuple[TrainingData, PairBatchSampler, Provenance]:
    """All that can be checked before a model is built."""
    available_trackers(recipe.training.trackers)
    demand_recipe(recipe)
    demand_pairs(recipe)
    data = load_pairs(recipe)
    check_protocols(recipe, final_split(recipe, data.splits))
    data.bank = given_bank(recipe, data.noise, data.train.pairs)
    sampler = make_sampler(recipe, data.train)
    demand_negatives(recipe, sampler)
    builds_at_once = recipe.head.kind == "npc" and data.bank is None and not recipe.head.warmup_epochs
    if builds_at_once and (random := random_part(recipe.backbone)):
        warnings.warn(
            f"{random} of this backbone starts from random weights, and the memory bank would be built with them: set "
            "head.warmup_epochs, or name a bank of a trained model (head.bank, `clip-itm bank build --run DIR`)",
            stacklevel=1,
        )
    data.image_cache = prepare_photos(recipe, data.splits)  # minutes of decoding come last
    return data, sampler, describe_run(recipe, data.splits, data.noise, data.bank)


def given_bank(recipe: Recipe, noise: CaptionNoise, pairs: Pairs) -> MemoryBank | None:
    """The memory bank that `head.bank` names, or None. ValueError for that of other pairs or another `head.rho`."""
    if recipe.head.kind != "npc" or recipe.head.bank is None:
        return None
    bank = MemoryBank.load(recipe.head.bank)
    bank.check(noise, pairs)
    if bank.rho is not None and bank.rho != recipe.head.rho:
        raise ValueError(
            f"head.rho is {recipe.head.rho:g}, and {recipe.head.bank} was built with {bank.rho:g}: write head.rho: "
            f"{bank.rho:g}, or build it anew (`clip-itm bank build --rho {recipe.head.rho:g}`)"
        )
    return bank
