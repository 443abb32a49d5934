"""Features of frozen towers, encoded once and kept on disk: what makes real photos trainable on a laptop.

A file is named by the hash of everything it depends on: the weights of the tower, the preprocessing, and the photos
(path, size and time of change, or the bytes) or captions themselves. Another tower or a changed photo is another
file, never a stale answer.
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from accelerate import PartialState
from torch import Tensor, nn

from clip_itm.backbones.blocks import Block, parameters
from clip_itm.data.rows import Split, hash_strings
from clip_itm.training.encode import encode_captions, encode_photos


def is_frozen(blocks: list[Block]) -> bool:
    """Whether nothing in these blocks trains."""
    return not any(parameter.requires_grad for parameter in parameters(blocks))


def photo_features(model, split: Split, processor, folder: Path, batch_size: int, num_workers: int, image_cache=None):
    """Pooled outputs of the image tower for the photos of `split`: float32 [Ni, C], memory-mapped."""
    key = _key(model.backbone.image_blocks(), processor.image_processor.to_json_string(), _photo_identities(split))

    @torch.inference_mode()
    def encode() -> Tensor:
        model.eval()
        tower = lambda pixels: model.backbone.image_trunk(pixels).pooled  # noqa: E731
        what = f"photos of {split.name} (kept in {folder})"
        return encode_photos(
            tower, split.rows, processor, model.device, batch_size, num_workers, image_cache, description=what
        )

    return _kept(folder / f"photos-{key}.npy", encode)


def caption_features(model, split: Split, processor, folder: Path, batch_size: int):
    """Pooled outputs of the text tower for the captions of `split`, in pair order: float32 [Nt, C], memory-mapped."""
    key = _key(
        model.backbone.text_blocks(), processor.tokenizer.backend_tokenizer.to_str(), split.pairs.captions_sha256
    )

    @torch.inference_mode()
    def encode() -> Tensor:
        model.eval()
        tower = lambda ids, mask: model.backbone.text_trunk(ids, mask).pooled  # noqa: E731
        what = f"captions of {split.name} (kept in {folder})"
        return encode_captions(tower, split.pairs.captions, processor, model.device, batch_size, description=what)

    return _kept(folder / f"captions-{key}.npy", encode)


def _kept(path: Path, encode: Callable[[], Tensor]) -> np.ndarray:
    """The array of `path`, encoded by all processes and written by the first where it is not there yet."""
    state = PartialState()
    missing = not path.is_file()
    state.wait_for_everyone()  # nobody writes before everybody has looked
    if missing:
        features = encode()
        if state.is_main_process:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.stem}.{os.getpid()}.npy")
            np.save(temporary, features.numpy(), allow_pickle=False)
            os.replace(temporary, path)
        state.wait_for_everyone()
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _key(blocks: list[Block], preprocessing: str, inputs: str) -> str:
    digest = hashlib.sha256(f"{preprocessing}\n{inputs}\n".encode())
    for block in blocks:
        for part in block:
            tensors = {"": part} if isinstance(part, nn.Parameter) else part.state_dict()
            for name, tensor in tensors.items():
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
                digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


def _photo_identities(split: Split) -> str:
    identities = []
    for image in split.rows["image"]:
        if image["bytes"] is not None:
            identities.append(hashlib.sha256(image["bytes"]).hexdigest())
        else:
            status = os.stat(image["path"])
            identities.append(json.dumps([os.path.abspath(image["path"]), status.st_size, status.st_mtime_ns]))
    return hash_strings(pa.array(identities, pa.string()))
