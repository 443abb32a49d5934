"""The work of an image processor in two halves: resizing where photos are read, arithmetic where the model is.

Pixels stay bytes in between: a quarter of the data between processes and to the device, and little enough to keep. The
values are those of the whole processor, bit for bit.
"""

import copy
import os

import torch
from torch import Tensor
from torch.utils.data import get_worker_info
from transformers.image_processing_backends import TorchvisionBackend

from clip_itm.image_processing import OpenClipImageProcessor, image_inputs
from clip_itm.processing import ItmProcessor

KEPT_BYTES = 2**30  # at most; 7,000 photos of 224 x 224
KEPT_SHARE = 8  # at most one part in this many of the machine's memory


class Pixels:
    """The two halves: `read` of images and `normalize` of its `pixel_values` give what `processor` makes of them."""

    def __init__(self, processor: ItmProcessor):
        whole = processor.image_processor
        self.resizing = whole
        self.as_bytes = (
            isinstance(whole, TorchvisionBackend)
            and type(whole)._preprocess in (TorchvisionBackend._preprocess, OpenClipImageProcessor._preprocess)
            and type(whole).rescale_and_normalize is TorchvisionBackend.rescale_and_normalize
            and bool(whole.do_rescale and whole.do_normalize)
        )
        if self.as_bytes:
            self.resizing = copy.copy(whole)
            self.resizing.do_rescale = self.resizing.do_normalize = False
            factor = 1.0 / whole.rescale_factor
            mean, std = (torch.tensor(value)[:, None, None] * factor for value in (whole.image_mean, whole.image_std))
            self._scale = {torch.device("cpu"): (mean, std)}

    def read(self, images: list) -> dict[str, Tensor]:
        """See `image_inputs`; `pixel_values` are uint8, or float32 from a processor that cannot be divided."""
        return image_inputs(self.resizing, images)

    def normalize(self, pixels: Tensor) -> Tensor:
        """The model's float32 pixels, on the device that `pixels` are on."""
        if pixels.dtype != torch.uint8:
            return pixels
        if pixels.device not in self._scale:
            mean, std = self._scale[torch.device("cpu")]
            self._scale[pixels.device] = mean.to(pixels.device), std.to(pixels.device)
        mean, std = self._scale[pixels.device]
        return pixels.to(torch.float32).sub_(mean).div_(std)


class KeptPixels:
    """Pixels of photos in the memory of this process, by split and number of the photo, as long as there is room.

    A loader process keeps nothing, because no other process would see it.
    """

    def __init__(self, limit: int | None = None):
        self.room = limit
        if limit is None:
            memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
            self.room = min(KEPT_BYTES, memory // KEPT_SHARE)
        self._kept: dict[tuple[str, int], Tensor] = {}

    def get(self, split: str, numbers: list[int]) -> dict[int, Tensor]:
        """The kept pixels of these photos, uint8 [3, H, W] each; photos that are not kept are missing."""
        return {number: self._kept[split, number] for number in numbers if (split, number) in self._kept}

    def keep(self, split: str, numbers: list[int], pixels: Tensor) -> None:
        """Keep uint8 [P, 3, H, W] of the photos `numbers`."""
        if pixels.dtype != torch.uint8 or get_worker_info() is not None:
            return
        for number, own in zip(numbers, pixels, strict=True):
            if own.nbytes > self.room:
                return
            self.room -= own.nbytes
            self._kept[split, number] = own.clone()

    def read(self, split: str, numbers: list[int], read) -> dict[str, Tensor]:
        """`pixel_values` of the photos `numbers`; `read(numbers)` gives those that are not kept.

        If none is kept, the result has all inputs that `read` gives.
        """
        known = self.get(split, numbers)
        missing = [number for number in numbers if number not in known]
        if missing:
            inputs = read(missing)
            self.keep(split, missing, inputs["pixel_values"])
            if not known:
                return inputs
            known |= dict(zip(missing, inputs["pixel_values"], strict=True))
        return {"pixel_values": torch.stack([known[number] for number in numbers])}
