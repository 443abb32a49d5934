"""`Encoder`: the embeddings of a split under a model's current weights."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from clip_itm.data.batches import rows_of
from clip_itm.data.image_cache import ImageCache
from clip_itm.data.pixels import KeptPixels
from clip_itm.data.rows import Pairs, Split
from clip_itm.distributed import process_state
from clip_itm.processing import ItmProcessor
from clip_itm.training.encode import Embeddings, ImageInputs, encode_split
from clip_itm.training.feature_cache import caption_features, image_features, is_frozen


@dataclass
class Encoder:
    """Embeddings of any split under the current weights of `model`, from cached features if a tower is frozen.

    `cache_folder` holds these features; `precision`: that of autocast (None: float32); `random_crop`: the smallest
    fraction of an image that a training crop keeps (1: no cropping). `kept`: pixels in memory, of whole splits.
    """

    model: nn.Module
    processor: ItmProcessor
    cache_folder: Path
    batch_size: int = 128
    num_workers: int = 0
    precision: torch.dtype | None = None
    random_crop: float = 1
    image_cache: ImageCache | None = None
    kept: KeptPixels | None = None

    def __post_init__(self):
        self.frozen_images = is_frozen(self.model.backbone.image_blocks())
        self.frozen_texts = is_frozen(self.model.backbone.text_blocks())
        self._cached: dict[tuple[str, str], Any] = {}

    def image_features(self, split: Split) -> dict[str, np.ndarray] | None:
        """Outputs of a frozen image tower, row k for image k.

        None if the tower trains, images are cropped at random, or the data are regions.
        """
        if split.regions is not None or not self.frozen_images or self.random_crop < 1:
            return None
        if ("photos", split.name) not in self._cached:
            self._cached["photos", split.name] = image_features(
                self.model,
                split,
                self.processor,
                self.cache_folder,
                self.batch_size,
                self.num_workers,
                self.image_cache,
            )
        return self._cached["photos", split.name]

    def image_inputs(self, split: Split) -> ImageInputs | None:
        """What replaces the pixels of `split` in the model's inputs; None if images are read."""
        if split.regions is not None:
            return split.regions.batch
        cached = self.image_features(split)
        return None if cached is None else partial(rows_of, cached)

    def text_features(self, split: Split) -> np.ndarray | None:
        """Outputs of a frozen text tower [Nt, C]; None if the tower trains, words are hidden or the head reads them."""
        backbone = self.model.backbone
        if not self.frozen_texts or backbone.output_tokens or backbone.config.word_dropout:
            return None
        if ("captions", split.name) not in self._cached:
            self._cached["captions", split.name] = caption_features(
                self.model, split, self.processor, self.cache_folder, self.batch_size
            )
        return self._cached["captions", split.name]

    def encode(self, split: Split) -> Embeddings:
        return self._encode(split, split.rows, split.pairs, self.image_inputs(split), self.text_features(split))

    def encode_some(self, split: Split, images: np.ndarray, captions: np.ndarray) -> Embeddings:
        """Embeddings of some images and captions of `split`, in this order; `caption_image` is that of the captions.

        `images` int64 [P] and `captions` int64 [n] are indices of images and of original captions. Cached features of a
        frozen tower are those of the whole split.
        """
        pairs, inputs, features = split.pairs, self.image_inputs(split), self.text_features(split)
        some = replace(pairs, captions=pairs.captions.take(pa.array(captions)), image=pairs.image[captions])
        chosen = None if inputs is None else lambda rows: inputs(images[rows])
        features = None if features is None else features[captions]
        return self._encode(split, split.rows.select(images), some, chosen, features, captions)

    def _encode(self, split: Split, rows, pairs: Pairs, inputs, features, captions: np.ndarray | None = None):
        vectors = None if split.regions is None else split.regions.caption_vectors
        return encode_split(
            self.model,
            rows,
            pairs,
            self.processor,
            self.batch_size,
            self.num_workers,
            self.precision,
            inputs,
            features,
            self.image_cache,
            vectors if vectors is None or captions is None else vectors[captions],
            kept=self.kept if captions is None else None,
            name=split.name,
        )


def autocast_dtype(wanted: str) -> torch.dtype | None:
    """bfloat16, over float32 weights, if `training.precision` and the device allow it; None for plain float32."""
    on_gpu = torch.cuda.is_available() and process_state().device.type == "cuda"
    if wanted == "bf16" or (wanted == "auto" and on_gpu and torch.cuda.is_bf16_supported()):
        return torch.bfloat16
    return None
