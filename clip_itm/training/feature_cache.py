"""Features of frozen towers, encoded once and cached on disk, so that a laptop can train on real images.

A file is named by the hash of everything it depends on: architecture and weights of the tower, the preprocessing, and
the images (path, size and modification time, or the bytes) or captions themselves. Another tower or a changed image
gets another file, never a stale answer. Every file is compared with its checksum before it is used, and made again if
it is damaged. Runs that need the same features at the same time each encode them; the last one's file stays.
"""

import hashlib
import json
import math
import os
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset as Rows
from torch import Tensor, nn

from clip_itm.backbones.blocks import Block, parameters
from clip_itm.data.arrays import cached_array, new_array
from clip_itm.data.rows import Split, hash_strings
from clip_itm.data.tar_members import tar_member
from clip_itm.distributed import gather_constant, process_state
from clip_itm.files import DamagedError
from clip_itm.training.encode import encode_captions, encode_images
from clip_itm.weights import add_tensors

IMAGES_AT_ONCE = 8192
NO_ROOM = "make room, or choose a folder on another disk with data.cache_dir"


def is_frozen(blocks: list[Block]) -> bool:
    """Whether no parameter of these blocks trains."""
    return not any(parameter.requires_grad for parameter in parameters(blocks))


def image_features(
    model, split: Split, processor, folder: Path, batch_size: int, num_workers: int, image_cache=None
) -> dict[str, np.ndarray]:
    """Outputs of the image tower for the images of `split`, memory-mapped.

    `image_features` float32 [Ni, C] and, if the head reads tokens, `image_tokens` float16 [Ni, T, C'], with bool
    `image_mask` [Ni, T] if some are padding.
    """
    preprocessing = image_preprocessing(processor, image_cache)
    key = _key(model, model.backbone.image_blocks(), "text_", preprocessing, image_identities(split.rows))
    paths = {"image_features": folder / f"photos-{key}.npy"}
    if model.backbone.output_tokens:
        paths["image_tokens"] = folder / f"photos-{key}-tokens.npy"
        if model.backbone.pads_images:
            paths["image_mask"] = folder / f"photos-{key}-mask.npy"
    what = f"photos of {split.name} (kept in {folder})"
    encode = partial(
        encode_images,
        processor=processor,
        device=model.device,
        batch_size=batch_size,
        num_workers=num_workers,
        image_cache=image_cache,
        description=what,
    )

    def write() -> None:
        model.eval()
        _write_features(model, split, encode, paths)

    arrays = kept_arrays(list(paths.values()), len(split), write)
    return dict(zip(paths, arrays, strict=True))


def _write_features(model, split: Split, encode: Callable[..., Tensor], paths: dict[str, Path]) -> None:
    """Write a part of the images at a time: tokens take much memory, and a killed run resumes after the last part.

    Each part is a file of its own until all are there.
    """
    starts = range(0, len(split), IMAGES_AT_ONCE)
    if len(starts) == 1:
        return _write_part(model, split.rows, encode, paths)
    parts = []
    for start in starts:
        rows = split.rows.select(range(start, min(start + IMAGES_AT_ONCE, len(split))))
        own = {name: path.with_name(f"{path.stem}.{start}.part.npy") for name, path in paths.items()}
        kept_arrays(list(own.values()), len(rows), partial(_write_part, model, rows, encode, own))
        parts.append(own)
    state = process_state()
    if state.is_main_process:
        for name, path in paths.items():
            arrays = [np.load(own[name], mmap_mode="r", allow_pickle=False) for own in parts]
            with new_array(path, arrays[0].dtype, (len(split), *arrays[0].shape[1:]), NO_ROOM) as whole:
                for start, array in zip(starts, arrays, strict=True):
                    whole[start : start + len(array)] = array
        for own in parts:
            for path in own.values():
                path.unlink(missing_ok=True)
    state.wait_for_everyone()


@torch.inference_mode()
def _write_part(model, rows: Rows, encode: Callable[..., Tensor], paths: dict[str, Path]) -> None:
    """All processes encode, the first one writes."""
    shapes: list[tuple[int, ...]] = []

    def tower(**images: Tensor) -> Tensor:
        """Pooled features, tokens and their mask side by side."""
        features = model.backbone.image_trunk(**images)
        parts = [features.pooled, features.tokens, features.mask][: len(paths)]
        shapes[:] = [part.shape[1:] for part in parts]
        return torch.cat([part.flatten(1) for part in parts], dim=1)

    columns = encode(tower, rows)
    state = process_state()
    if state.is_main_process:
        sides = columns.split([math.prod(shape) for shape in shapes], dim=1)
        for path, side, shape, kind in zip(paths.values(), sides, shapes, (np.float32, np.float16, bool), strict=False):
            with new_array(path, kind, (len(rows), *shape), NO_ROOM) as array:
                array[:] = side.numpy().reshape(-1, *shape)
    state.wait_for_everyone()


def caption_features(model, split: Split, processor, folder: Path, batch_size: int):
    """Pooled outputs of the text tower for the captions of `split`, in pair order: float32 [Nt, C], memory-mapped."""
    preprocessing = caption_preprocessing(processor)
    key = _key(model, model.backbone.text_blocks(), "image_", preprocessing, split.pairs.captions_sha256)

    path = folder / f"captions-{key}.npy"

    @torch.inference_mode()
    def write() -> None:
        def tower(ids: Tensor, mask: Tensor) -> Tensor:
            return model.backbone.text_trunk(ids, mask).pooled

        model.eval()
        what = f"captions of {split.name} (kept in {folder})"
        features = encode_captions(
            tower, split.pairs.captions, processor, model.device, batch_size, description=what
        ).numpy()
        if process_state().is_main_process:
            with new_array(path, features.dtype, features.shape, NO_ROOM) as array:
                array[:] = features
        process_state().wait_for_everyone()

    return kept_arrays([path], len(split.pairs), write)[0]


def kept_arrays(paths: list[Path], length: int, write: Callable[[], None]) -> list[np.ndarray]:
    """The arrays of `paths`, which have `length` rows each, after `write` if they are missing or damaged.

    `write` runs in all processes or in none, and not before all of them have looked.
    """
    missing = torch.tensor([not all(_is_usable(path, length) for path in paths)], dtype=torch.int)
    if gather_constant(missing.to(process_state().device)).any():
        write()
    return [np.load(path, mmap_mode="r", allow_pickle=False) for path in paths]


def _is_usable(path: Path, length: int) -> bool:
    if not process_state().is_local_main_process:  # one process reads all of a file
        return path.is_file()
    try:
        return cached_array(path, length) is not None
    except DamagedError as error:
        warnings.warn(f"{error}; these features are encoded again", stacklevel=2)
        return False


def _key(model, blocks: list[Block], of_the_other: str, preprocessing: list, inputs: str) -> str:
    """Equal weights do not make equal towers (QuickGELU, padding of convolutions), so the section counts, too.

    Its keys for the other tower (which begin with `of_the_other`) and those at their default do not: another text
    tower, or an option added in a later version, leaves cached features of images valid.
    """
    section = model.backbone.config.model_dump(mode="json", exclude_defaults=True)
    architecture = {
        name: value
        for name, value in {"kind": model.backbone.config.kind, **section}.items()
        if not name.endswith("_dropout") and not name.startswith(of_the_other)
    }
    digest = hashlib.sha256(json.dumps([architecture, preprocessing, inputs], sort_keys=True).encode())
    for block in blocks:
        for part in block:
            tensors = {"": part} if isinstance(part, nn.Parameter) else part.state_dict()
            add_tensors(digest, tensors)
    return digest.hexdigest()[:32]


def image_preprocessing(processor, image_cache=None) -> list:
    """What the pixels of an image depend on besides the image."""
    resized = f"cache_images {image_cache.short_side}" if image_cache else "originals"
    return [processor.image_processor.to_json_string(), type(processor.image_processor).__name__, resized]


def caption_preprocessing(processor) -> list:
    """What the tokens of a caption depend on besides the caption."""
    options = [processor.text_cleaning, processor.max_length, processor.pad_token_id, processor.pad_to_max_length]
    return [type(processor.tokenizer).__name__, sorted(processor.tokenizer.get_vocab().items()), *options]


def image_identities(rows: Rows) -> str:
    """Hash of what identifies the images: their bytes; path, size and modification time of files; or tar entries."""
    identities = []
    for image in rows["image"]:
        if image["bytes"] is not None:
            identities.append(hashlib.sha256(image["bytes"]).hexdigest())
        elif (member := tar_member(image["path"])) is not None:
            identities.append(member.identity)
        else:
            status = os.stat(image["path"])
            identities.append(json.dumps([os.path.abspath(image["path"]), status.st_size, status.st_mtime_ns]))
    return hash_strings(pa.array(identities, pa.string()))
