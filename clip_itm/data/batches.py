"""Training batches, read as a whole: images decoded once, captions trimmed, and what comes along with them."""

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from clip_itm.data.image_cache import ImageCache
from clip_itm.data.images import read_image
from clip_itm.data.noise import CaptionNoise
from clip_itm.data.pixels import KeptPixels, Pixels
from clip_itm.data.rows import Split
from clip_itm.data.tokens import CaptionTokens


def find_rows(wanted: np.ndarray, known: np.ndarray) -> tuple[Tensor, np.ndarray]:
    """Index int64 [M] of each of `wanted` [M] in `known` + more; and more, the values not in `known`, each once."""
    row = dict(zip(known[::-1].tolist(), range(len(known) - 1, -1, -1), strict=True))
    more = [value for value in dict.fromkeys(wanted.tolist()) if value not in row]
    row |= dict(zip(more, range(len(known), len(known) + len(more)), strict=True))
    return torch.tensor([row[value] for value in wanted.tolist()]), np.array(more, dtype=np.int64)


class PairDataset(Dataset):
    """Training pairs, read one whole batch at a time: `__getitems__` gives the tensors, `collate_fn` passes them on.

    Pair k shows image `split.pairs.image[k]` with caption `noise.source[k]`. An image is read and preprocessed once
    per batch, however many captions it has there. Cached outputs of a frozen tower, if given, replace images or
    captions: `image_features`, arrays by image index (`image_features` [images, C], `image_tokens` [images, T, C']),
    and `text_features` [N, C] in the order of the original captions. `tokens`, the captions tokenized beforehand, and
    the regions of a split that has them do the same.

    With `random_crop` < 1 an image is cropped, before `processor`, to its own aspect ratio and a random fraction of its
    area between `random_crop` and 1, at a random position: a function of (seed, epoch, image), whichever worker reads
    it.

    `memory`: pair indices (for every image int64 [images], for every pair int64 [N]) whose images and captions come
    along with each batch; None: no such entries. `caption_numbers` int64 [N], the same for pairs with equal captions,
    come along if given. With `pixels`, `pixel_values` are what its `read` gives and its `normalize` expects, and `kept`
    keeps those that are not cropped. Raises ValueError if `noise` was made for other captions.
    """

    def __init__(
        self,
        split: Split,
        noise: CaptionNoise,
        processor,
        image_features: dict[str, np.ndarray] | None = None,
        text_features: np.ndarray | None = None,
        image_cache: ImageCache | None = None,
        random_crop: float = 1.0,
        seed: int = 0,
        tokens: CaptionTokens | None = None,
        caption_numbers: np.ndarray | None = None,
        pixels: Pixels | None = None,
        kept: KeptPixels | None = None,
    ):
        noise.check(split.pairs)
        self.rows, self.pair_image, self.captions = split.rows, split.pairs.image, split.pairs.captions
        self.source, self.pair_weight, self.processor = noise.source, split.pairs.weight, processor
        self.image_features, self.text_features, self.tokens = image_features, text_features, tokens
        self.regions, self.caption_numbers = split.regions, caption_numbers
        self.image_cache, self.random_crop, self.seed = image_cache, random_crop, seed
        self.pixels, self.kept = pixels, kept if pixels is not None and random_crop == 1 else None
        self.split_name = "" if self.kept is None else split.name
        self.memory: tuple[np.ndarray, np.ndarray] | None = None
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # long-lived workers see it change

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that random crops depend on, in the workers of this data set too."""
        self.epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.pair_image)

    def __getitems__(self, pairs: list[int]) -> dict[str, Tensor]:
        """The batch of B pairs, P distinct images and captions of at most T tokens.

        `pixel_values` [P, 3, H, W] (or see `image_inputs`) or `image_features` [P, C] (with `image_tokens` [P, T, C']
        where the head reads them) or regions (`image_tokens` with `image_mask`, see `RegionFeatures.batch`), images in
        order of first appearance; `image_index` int64 [B], the row of each pair's image in them; `input_ids` and
        `attention_mask` [B, T] or `text_features` [B, C], or both if regions come with vectors; `pair_ids` and
        `image_ids` int64 [B], indices of the pair and of its image in the training split; `pair_weight` float32 [B] if
        the split has weights, `caption_ids` int64 [B] if there are `caption_numbers`.
        With a memory, `memory_...` too (see `_with_memory`): first the entries of the images of the B pairs, then those
        of the pairs.
        """
        pair_ids = np.asarray(pairs, dtype=np.int64)
        image_ids, captions = self.pair_image[pair_ids], self.source[pair_ids]
        image_rows = np.array(list(dict.fromkeys(image_ids.tolist())))
        batch = {
            "image_index": find_rows(image_ids, image_rows)[0],
            "pair_ids": torch.from_numpy(pair_ids),
            "image_ids": torch.from_numpy(image_ids),
        }
        if self.pair_weight is not None:
            batch["pair_weight"] = torch.from_numpy(self.pair_weight[pair_ids])
        if self.caption_numbers is not None:
            batch["caption_ids"] = torch.from_numpy(self.caption_numbers[pair_ids])
        if self.memory is None:
            return batch | self._images(image_rows) | self._texts(captions)
        return batch | self._with_memory(pair_ids, image_rows, captions)

    def _with_memory(self, pair_ids: np.ndarray, image_rows: np.ndarray, captions: np.ndarray) -> dict[str, Tensor]:
        """Images and captions of the batch and, as `memory_...`, those of the 2 B entries that are not in the batch.

        `memory_image_index` and `memory_caption` int64 [2 B] are the rows of the entries in the two together,
        `memory_image_ids` int64 [2 B] their images in the training split, `memory_caption_ids` the numbers of their
        captions, if there are `caption_numbers`.
        """
        image_entry, caption_entry = self.memory
        entries = np.concatenate([image_entry[self.pair_image[pair_ids]], caption_entry[pair_ids]])
        image_index, more_image_rows = find_rows(self.pair_image[entries], image_rows)
        caption, more_captions = find_rows(self.source[entries], captions)
        batch = {
            "memory_image_index": image_index,
            "memory_caption": caption,
            "memory_image_ids": torch.from_numpy(self.pair_image[entries]),
        }
        if self.caption_numbers is not None:
            batch["memory_caption_ids"] = torch.from_numpy(self.caption_numbers[entries])
        # read together, so that captions have one width and no side is ever read for nothing
        images = self._images(np.concatenate([image_rows, more_image_rows]))
        texts = self._texts(np.concatenate([captions, more_captions]))
        for own, tensors in ((len(image_rows), images), (len(captions), texts)):
            for name, tensor in tensors.items():
                batch |= {name: tensor[:own], f"memory_{name}": tensor[own:]}
        return batch

    def _images(self, image_rows: np.ndarray) -> dict[str, Tensor]:
        if self.regions is not None:
            return self.regions.batch(image_rows)
        if self.image_features is not None:
            return rows_of(self.image_features, image_rows)
        numbers = image_rows.tolist()
        if self.kept is None:
            return self._read(numbers)
        return self.kept.read(self.split_name, numbers, self._read)

    def _read(self, numbers: list[int]) -> dict[str, Tensor]:
        images = [self._image(number) for number in numbers]
        if self.pixels is not None:
            return self.pixels.read(images)
        return dict(self.processor(images=images, return_tensors="pt"))

    def _image(self, image_index: int) -> Image.Image:
        stored = self.rows[image_index]["image"]
        image = read_image(stored if self.image_cache is None else self.image_cache.image(stored))
        if self.random_crop == 1:
            return image
        generator = np.random.default_rng([self.seed, int(self.epoch), image_index])
        scale = np.sqrt(generator.uniform(self.random_crop, 1))
        size = np.maximum(1, np.round(scale * np.array(image.size))).astype(int)
        left, top = (generator.random(2) * (np.array(image.size) - size + 1)).astype(int)
        return image.crop((left, top, left + size[0], top + size[1]))

    def _texts(self, captions: np.ndarray) -> dict[str, Tensor]:
        if self.text_features is not None:
            return {"text_features": torch.from_numpy(self.text_features[captions])}
        vectors = {} if self.regions is None else self.regions.caption_batch(captions)
        if self.tokens is not None:
            return self.tokens.batch(captions) | vectors
        texts = self.captions.take(pa.array(captions)).to_pylist()
        tokens = self.processor(text=texts, return_tensors="pt")
        return {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]} | vectors


def rows_of(arrays: dict[str, np.ndarray], indices: np.ndarray) -> dict[str, Tensor]:
    """The rows `indices` int64 [M] of every array, as float32 (or bool) tensors of the same names."""
    kinds = {name: bool if array.dtype == bool else np.float32 for name, array in arrays.items()}
    return {name: torch.from_numpy(np.asarray(array[indices], kinds[name])) for name, array in arrays.items()}
