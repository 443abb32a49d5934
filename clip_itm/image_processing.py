"""Images to pixels, as in open_clip, torchvision and OpenAI's program; and thin images for any image processor."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature, CLIPImageProcessor
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_transforms import to_pil_image
from transformers.processing_utils import ImagesKwargs

from clip_itm.resizing import (
    KERNELS,
    keep_ratio,
    lowered,
    require_moderate,
    resize_and_crop,
    resized_part,
    shortest_edge,
)

# what an image processor gives and a tower reads; the last two only where images keep their aspect ratio
PIXEL_KEYS = ("pixel_values", "pixel_attention_mask", "spatial_shapes")
MODERATE = (
    2**24
)  # pixels (50 MB) that an image processor of transformers may make of an image before it cuts the centre


class OpenClipImagesKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    resize_mode: str | None
    fill_color: int | None


class OpenClipImageProcessor(CLIPImageProcessor):
    """A CLIPImageProcessor that gives the pixels of `open_clip.image_transform(..., is_train=False)`.

    As there, Pillow resizes, and the centre is cut at half a pixel rounded to even; CLIPImageProcessor rounds it down,
    so that a quarter of all images are one pixel apart. `resize_mode`: "shortest" or "longest" side to that of
    `crop_size`, for what `size` cannot say (a target that is not square; the margin is filled with `fill_color`).

    It is saved as a CLIPImageProcessor, which `ItmProcessor` turns into this one.
    """

    valid_kwargs = OpenClipImagesKwargs
    resize_mode = None
    fill_color = None

    @classmethod
    def of(cls, processor: CLIPImageProcessor) -> "OpenClipImageProcessor":
        """An instance with the options of `processor`."""
        return cls.from_dict(processor.to_dict())

    def process_image(self, image, **kwargs) -> Image.Image:
        """See `TorchvisionBackend`; anything but a Pillow image becomes one."""
        if not isinstance(image, Image.Image):
            image = to_pil_image(image)
        return image if image.mode == "RGB" else image.convert("RGB")

    def _preprocess(
        self,
        images: list[Image.Image],
        do_resize: bool,
        size,
        resample: int,
        do_center_crop: bool,
        crop_size,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean,
        image_std,
        return_tensors=None,
        resize_mode: str | None = None,
        fill_color: int | None = None,
        **kwargs,
    ) -> BatchFeature:
        arrays = []
        for image in images:
            crop = (crop_size.width, crop_size.height) if do_center_crop else None
            resized = _resized_size(image.size, size, resize_mode, crop) if do_resize else image.size
            arrays.append(np.asarray(resize_and_crop(image, resized, crop or resized, resample, fill_color or 0)))
        pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
        pixels = self.rescale_and_normalize(pixels, do_rescale, rescale_factor, do_normalize, image_mean, image_std)
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)

    def to_dict(self) -> dict:
        return {**super().to_dict(), "image_processor_type": "CLIPImageProcessor"}


def _resized_size(image: tuple[int, int], size, resize_mode: str | None, crop: tuple[int, int] | None):
    if resize_mode is not None:
        assert crop is not None, "a mode says how `crop_size` is reached"
        return keep_ratio(image, crop, inside=resize_mode == "longest")
    if size.shortest_edge:
        return shortest_edge(image, size.shortest_edge)
    return size.width, size.height


def image_inputs(processor, images: list) -> dict[str, Tensor]:
    """What `processor`, any image processor of transformers, makes of images: `pixel_values` float32 [P, 3, H, W].

    SigLIP 2's of variable resolution (NaFlex, arXiv 2502.14786 section 2.4.2) resizes an image to at most
    `max_num_patches` = T patches of side p, with almost the same aspect ratio: `pixel_values` [P, T, p * p * 3],
    padded with zeros, `pixel_attention_mask` [P, T], 1 at patches, and `spatial_shapes` int64 [P, 2], their rows and
    columns. Of a thin image, only the part that is kept is resized. Raises `ValueError` for an image too thin for that.
    """
    if not isinstance(processor, OpenClipImageProcessor):
        images = [_within_bounds(processor, image) if isinstance(image, Image.Image) else image for image in images]
    made = processor(images, return_tensors="pt")
    return {key: made[key] for key in PIXEL_KEYS if key in made}


def _within_bounds(processor, image: Image.Image) -> Image.Image:
    """`image`, or, of a thin one, the part whose centre `processor` keeps, already resized."""
    size = getattr(processor, "size", None)
    edge = getattr(size, "shortest_edge", None)
    if not edge or getattr(size, "longest_edge", None):
        target = getattr(size, "width", None) or 1, getattr(size, "height", None) or image.height
        return lowered(image, target, processor.resample)
    resized = shortest_edge(image.size, edge)
    kept = (processor.crop_size.width, processor.crop_size.height) if _crops(processor) else resized
    if resized[0] * resized[1] <= MODERATE or kept == resized or processor.resample not in KERNELS:
        require_moderate(image.size, resized)
        return image
    box = []
    for whole, part in zip(resized, kept, strict=True):
        margin = max(0, -(-(edge - part) // 2))  # the part is not resized again, and its centre is that of the whole
        start = int((whole - part) / 2) - margin
        box.append((max(start, 0), min(start + part + 2 * margin, whole)))
    (left, right), (top, bottom) = box
    return resized_part(image.convert("RGB"), resized, (left, top, right, bottom), processor.resample)


def _crops(processor) -> bool:
    """Whether it cuts the centre as `TorchvisionBackend` does."""
    return bool(getattr(processor, "do_center_crop", False)) and all(
        getattr(type(processor), name, None) is getattr(TorchvisionBackend, name) for name in ("resize", "center_crop")
    )
