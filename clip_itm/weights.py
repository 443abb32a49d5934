"""A hash of weights, by which an artefact identifies the model that made it."""

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor

from clip_itm.renamed import with_old_names


def add_tensors(digest, tensors: Mapping[str, Tensor]) -> None:
    """Feed names, types, shapes and bytes of tensors, in their order, into a `hashlib` digest."""
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())


def trains_only(key: str) -> bool:
    """Whether a key of a backbone's section says only how the towers are trained, not what they compute."""
    frozen = ("freeze_image", "freeze_text", "freeze_image_blocks", "freeze_text_blocks", "word_dropout")
    return key in frozen or key.endswith("_dropout")


def model_sha256(model) -> str:
    """Hash of everything that determines the embeddings of an `ItmModel`: architecture and weights.

    Dropouts and what is frozen do not count, so that a model has the hash of its saved copy under any recipe.
    """
    backbone = {key: value for key, value in model.config.backbone.items() if not trains_only(key)}
    head = model.config.head and with_old_names("head", model.config.head)
    digest = hashlib.sha256(json.dumps([backbone, head], sort_keys=True).encode())
    ignored = set(model._keys_to_ignore_on_save)  # what only training needs
    add_tensors(digest, {name: value for name, value in model.state_dict().items() if name not in ignored})
    return digest.hexdigest()
