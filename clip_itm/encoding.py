"""`encode`: embeddings of what a user has, images or texts, under a model in memory."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from clip_itm.data.inputs import embed_all, modality_of, model_inputs
from clip_itm.processing import ItmProcessor


@torch.inference_mode()
def encode(model, inputs: Any, batch_size: int, convert_to: str, progress: bool | None) -> np.ndarray | Tensor:
    """See `ItmModel.encode`."""
    values, single = _listed(inputs)
    if convert_to not in ("numpy", "torch"):
        raise ValueError(f"convert_to: expected numpy or torch, found {convert_to!r}")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected at least 1")
    processor = processor_of(model)

    def embed(batch: list) -> Tensor:
        moved = {name: tensor.to(model.device) for name, tensor in model_inputs(batch, processor).items()}
        return model.embed(**moved).cpu()

    was_training = model.training
    model.eval()
    try:
        hidden = None if progress is None else not progress
        with tqdm(total=len(values), desc="encoding", leave=False, disable=hidden) as bar:
            embeddings = embed_all(embed, values, batch_size, bar)
    finally:
        model.train(was_training)
    embeddings = embeddings[0] if single else embeddings
    return embeddings.numpy() if convert_to == "numpy" else embeddings


def processor_of(model) -> ItmProcessor:
    """The processor that a model knows, else the one next to its files. Raises ValueError if there is neither."""
    if model.processor is None:
        if not model.name_or_path:
            raise ValueError("this model has no processor: set model.processor, or load it by load_model")
        model.processor = ItmProcessor.from_pretrained(model.name_or_path)
    return model.processor


def _listed(inputs: Any) -> tuple[list, bool]:
    """Images or texts as a list, and whether a single one was given. Raises ValueError for none, or a mix of both."""
    single = isinstance(inputs, str | bytes | dict | Path | Image.Image | np.ndarray)
    values = [inputs] if single else list(inputs)
    if not values:
        raise ValueError("there is nothing to encode: an empty list")
    kinds = [modality_of(value) for value in values]
    if (other := next((row for row, kind in enumerate(kinds) if kind != kinds[0]), None)) is not None:
        raise ValueError(f"images or texts, not both: number 0 is {kinds[0]}, number {other} is {kinds[other]}")
    return values, single
