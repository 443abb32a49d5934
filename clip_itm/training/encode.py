"""Encodes a split: every image once, every distinct caption once, divided among all processes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset as Rows
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from clip_itm.data.images import read_image
from clip_itm.data.pixels import KeptPixels, Pixels
from clip_itm.data.rows import Pairs
from clip_itm.distributed import gather_constant, num_processes, process_index

ImageInputs = Callable[[np.ndarray], dict[str, Tensor]]
"""`inputs(indices int64 [b])` gives what `ItmModel.encode_images` takes instead of pixels."""


@dataclass(frozen=True)
class Embeddings:
    """`images` [Ni, ...] and `texts` [Nt, ...] float32 on the CPU; `caption_image` int64 [Nt], the caption's image."""

    images: Tensor
    texts: Tensor
    caption_image: Tensor


class _Images(torch.utils.data.Dataset):
    """Whole batches of pixels by row number, as `Pixels.read` gives them; `kept`: of the split `name`."""

    def __init__(self, rows: Rows, pixels: Pixels, image_cache=None, kept: KeptPixels | None = None, name: str = ""):
        self.rows, self.pixels, self.image_cache, self.kept, self.name = rows, pixels, image_cache, kept, name

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        return self._read(indices) if self.kept is None else self.kept.read(self.name, indices, self._read)

    def _read(self, indices: list[int]) -> dict[str, Tensor]:
        stored = (self.rows[index]["image"] for index in indices)
        return self.pixels.read(
            [read_image(self.image_cache.image(image) if self.image_cache else image) for image in stored]
        )


def encode_images(
    encode: Callable[..., Tensor],
    rows: Rows,
    processor,
    device: torch.device,
    batch_size: int,
    num_workers: int = 0,
    image_cache=None,
    description: str = "photos",
    kept: KeptPixels | None = None,
    name: str = "",
) -> Tensor:
    """`encode` over all images, float32 [Ni, ...] on the CPU of every process.

    `encode` maps what `processor` makes of b images to [b, ...]. `kept`: pixels of the split `name` that are in memory
    already, or will be.
    """
    pixels = Pixels(processor)
    loader = DataLoader(
        _Images(rows, pixels, image_cache, kept, name),
        batch_sampler=list(_batches(len(rows), batch_size)),
        collate_fn=_as_it_is,
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # the loader must not draw from the global generator: resuming would not be exact
    )
    parts = []
    for batch in _progress(loader, description):
        inputs = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
        inputs["pixel_values"] = pixels.normalize(inputs["pixel_values"])
        parts.append(encode(**inputs).float())
    return _merge(parts, len(rows), device)


def encode_stored(
    encode: Callable[..., Tensor], inputs: ImageInputs, count: int, device: torch.device, batch_size: int
) -> Tensor:
    """`encode` over the `inputs` of images 0..count-1: float32 [Ni, ...] on the CPU, on every process."""
    parts = []
    for indices in _progress(list(_batches(count, batch_size)), "photos"):
        batch = {name: tensor.to(device) for name, tensor in inputs(np.array(indices)).items()}
        parts.append(encode(**batch).float())
    return _merge(parts, count, device)


def encode_captions(
    encode: Callable[..., Tensor],
    captions: pa.Array,
    processor,
    device: torch.device,
    batch_size: int,
    description: str = "captions",
    vectors: np.ndarray | None = None,
) -> Tensor:
    """`encode` (ids, mask [b, T] to [b, ...]) over all captions, equal ones once: float32 [Nt, ...] on the CPU.

    `vectors` [Nt, C]: pooled features of the captions from another model, the third argument of `encode`.
    """
    encoded = captions.dictionary_encode()
    distinct = encoded.dictionary.to_pylist()
    first = np.unique(encoded.indices.to_numpy(), return_index=True)[1]
    by_length = sorted(range(len(distinct)), key=lambda index: len(distinct[index]))  # little padding in a batch
    parts = []
    for batch in _progress(list(_batches(len(distinct), batch_size)), description):
        chosen = [by_length[index] for index in batch]
        tokens = processor(text=[distinct[index] for index in chosen], return_tensors="pt").to(device)
        own = [] if vectors is None else [torch.from_numpy(np.array(vectors[first[chosen]])).to(device)]
        parts.append(encode(tokens["input_ids"], tokens["attention_mask"], *own).float())
    merged = _merge(parts, len(distinct), device)
    embeddings = torch.empty_like(merged)
    embeddings[torch.tensor(by_length)] = merged
    return embeddings[torch.from_numpy(encoded.indices.to_numpy().astype(np.int64))]


@torch.inference_mode()
def encode_split(
    model,
    rows: Rows,
    pairs: Pairs,
    processor,
    batch_size: int = 128,
    num_workers: int = 0,
    precision: torch.dtype | None = None,
    image_inputs: ImageInputs | None = None,
    text_features: np.ndarray | None = None,
    image_cache=None,
    caption_vectors: np.ndarray | None = None,
    kept: KeptPixels | None = None,
    name: str = "",
) -> Embeddings:
    """Embeddings of a whole split under `model` (an `ItmModel`), in evaluation mode, under autocast to `precision`.

    `image_inputs` and `text_features` [Nt, C] replace images and captions if outputs of frozen towers are cached, or
    the data are regions; `caption_vectors` [Nt, C]: see `encode_captions`; `kept`, `name`: see `encode_images`.
    """
    was_training, device = model.training, model.device
    model.eval()
    try:
        with torch.autocast(device.type, dtype=precision, enabled=precision is not None):
            if image_inputs is None:
                arguments = rows, processor, device, batch_size, num_workers, image_cache, "photos", kept, name
                images = encode_images(model.encode_images, *arguments)
            else:
                images = encode_stored(model.encode_images, image_inputs, len(rows), device, max(batch_size, 256))
            if text_features is None:
                texts = encode_captions(
                    model.encode_texts, pairs.captions, processor, device, batch_size, vectors=caption_vectors
                )
            else:
                texts = _encode_features(lambda block: model.encode_texts(text_features=block), text_features, device)
    finally:
        model.train(was_training)
    return Embeddings(images, texts, torch.from_numpy(pairs.image))


def _encode_features(encode: Callable[[Tensor], Tensor], features: np.ndarray, device: torch.device) -> Tensor:
    blocks = range(0, len(features), 4096)
    parts = [encode(torch.from_numpy(np.array(features[start : start + 4096])).to(device)) for start in blocks]
    return torch.cat(parts).float().cpu()


def scoring(model) -> Callable[[Tensor, Tensor], Tensor]:
    """A model's similarity as evaluation uses it: in evaluation mode, on its device; scores on that of the images."""
    similarity = model.head.similarity
    if similarity.is_dot_product:
        return similarity

    @torch.inference_mode()
    def score(images: Tensor, texts: Tensor) -> Tensor:
        was_training = similarity.training
        similarity.eval()
        scores = similarity(images.to(model.device), texts.to(model.device)).to(images.device)
        similarity.train(was_training)
        return scores

    return score


def _batches(count: int, batch_size: int) -> Iterator[list[int]]:
    """This process's share of 0..count-1 (every W-th number), in batches."""
    own = range(process_index(), count, num_processes())
    for start in range(0, len(own), batch_size):
        yield list(own[start : start + batch_size])


def _merge(parts: list[Tensor], count: int, device: torch.device) -> Tensor:
    """The rows of all processes in order: the inverse of `_batches`."""
    if num_processes() == 1:
        return torch.cat(parts).cpu()
    per_process = -(-count // num_processes())
    own = torch.cat(parts) if parts else None
    sizes = torch.zeros(1, 4, dtype=torch.int64, device=device)  # of an embedding; a process may have none
    if own is not None:
        sizes[0, : own.ndim - 1] = torch.tensor(own.shape[1:])
    shape = [size for size in gather_constant(sizes).amax(dim=0).tolist() if size]
    padded = torch.zeros(per_process, *shape, device=device)
    if own is not None:
        padded[: len(own)] = own
    gathered = gather_constant(padded).view(num_processes(), per_process, *shape)
    return gathered.transpose(0, 1).reshape(num_processes() * per_process, *shape)[:count].cpu()


def _progress(batches, description: str):
    return tqdm(batches, desc=f"encoding {description}", leave=False, disable=process_index() != 0)


def _as_it_is(batch):
    return batch
