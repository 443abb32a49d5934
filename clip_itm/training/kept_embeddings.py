"""Embeddings of a whole split, kept on disk part by part, so that a killed program resumes and nothing is done twice.

As with features of frozen towers (`feature_cache.py`), a file is named by the hash of everything it depends on, here
the weights of the whole model, and compared with its checksum before it is used.
"""

import hashlib
import json

import numpy as np
import pyarrow as pa
import torch
from tqdm.auto import tqdm

from clip_itm.data.arrays import new_array
from clip_itm.data.rows import Split, hash_strings
from clip_itm.distributed import process_state
from clip_itm.training.encode import Embeddings
from clip_itm.training.encoder import Encoder
from clip_itm.training.feature_cache import (
    NO_ROOM,
    caption_preprocessing,
    image_identities,
    image_preprocessing,
    kept_arrays,
)
from clip_itm.weights import add_tensors

PART = 4096  # images, with their captions, that are at most lost when the program is killed


def kept_embeddings(encoder: Encoder, split: Split) -> Embeddings:
    """What `encoder.encode(split)` returns, `PART` images at a time, from files next to those of features.

    Only vectors are kept: sets, token grids and regions are encoded anew, because they are large or read quickly.
    """
    if split.regions is not None or not encoder.model.head.similarity.is_dot_product:
        return encoder.encode(split)
    folder, of_model = encoder.cache_folder.parent / "embeddings", _of_model(encoder)
    captions = np.searchsorted(split.pairs.image, np.arange(len(split) + 1))
    starts = range(0, len(split), PART)
    images, texts = [], []
    state = process_state()
    for start in tqdm(starts, desc="embeddings", leave=False, disable=len(starts) < 2 or not state.is_main_process):
        rows = np.arange(start, min(start + PART, len(split)))
        own = np.arange(captions[rows[0]], captions[rows[-1] + 1])
        sides = _kept_part(encoder, split, rows, own, folder, of_model)
        for parts, side in zip((images, texts), sides, strict=True):
            parts.append(torch.from_numpy(np.array(side)))
    return Embeddings(torch.cat(images), torch.cat(texts), torch.from_numpy(split.pairs.image))


def _kept_part(encoder: Encoder, split: Split, rows: np.ndarray, captions: np.ndarray, folder, of_model: str):
    """Arrays [rows, D] and [captions, D]."""
    chosen = split.pairs.captions.take(pa.array(captions))
    inputs = (image_identities(split.rows.select(rows)), hash_strings(chosen))
    names = [hashlib.sha256(f"{of_model} {one}".encode()).hexdigest()[:32] for one in inputs]
    paths = [folder / f"{kind}-{name}.npy" for kind, name in zip(("photos", "captions"), names, strict=True)]

    def write() -> None:
        found = encoder.encode_some(split, rows, captions)
        if process_state().is_main_process:
            for path, side in zip(paths, (found.images, found.texts), strict=True):
                with new_array(path, np.float32, tuple(side.shape), NO_ROOM) as array:
                    array[:] = side.numpy()
        process_state().wait_for_everyone()

    lengths = len(rows), len(captions)
    return [kept_arrays([path], length, write)[0] for path, length in zip(paths, lengths, strict=True)]


def _of_model(encoder: Encoder) -> str:
    """Hash of weights, architecture, preprocessing and precision."""
    model, processor = encoder.model, encoder.processor
    preprocessing = [image_preprocessing(processor, encoder.image_cache), caption_preprocessing(processor)]
    facts = [model.config.backbone, model.config.head, preprocessing, str(encoder.precision)]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    add_tensors(digest, model.state_dict())
    return digest.hexdigest()
