"""Makes only the part of a resized image that is kept, at the cost of that part, and to the bit as Pillow does.

Pillow resizes rows, rounds to 8 bits, then columns. The whole of a thin image may have over a thousand times the
pixels that a centre crop keeps of it (4000 x 3 becomes 298666 x 224), so of such images only the part is made.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image

WHOLE = 32  # up to this many resized pixels for each one that is kept, Pillow makes all of them
LARGEST = 2**26  # pixels that resizing may make, or hold between its passes, if nothing is cut off
PRECISION = 22  # bits of Pillow's integer weights


def shortest_edge(size: tuple[int, int], edge: int) -> tuple[int, int]:
    """(width, height) with `edge` as the short side; the long one is cut off to a whole number, as in torchvision."""
    width, height = size
    return (edge, int(edge * height / width)) if width <= height else (int(edge * width / height), edge)


def keep_ratio(size: tuple[int, int], target: tuple[int, int], inside: bool) -> tuple[int, int]:
    """(width, height) of the same shape that covers `target`, or fits `inside`; rounded, as in open_clip and timm."""
    ratios = [own / wanted for own, wanted in zip(size, target, strict=True)]
    ratio = max(ratios) if inside else min(ratios)
    width, height = (max(1, round(own / ratio)) for own in size)
    return width, height


def resize_and_crop(
    image: Image.Image, size: tuple[int, int], crop: tuple[int, int], resample: int, fill: int = 0
) -> Image.Image:
    """`image` in `size` (width, height), then its centre of `crop`, half a pixel rounded to even as in torchvision.

    Where the crop exceeds the image, it is `fill`. Raises `ValueError` for an image too thin to be resized.
    """
    starts = [_start(whole, kept) for whole, kept in zip(size, crop, strict=True)]
    left, top = (max(start, 0) for start in starts)
    right, bottom = (min(start + kept, whole) for start, kept, whole in zip(starts, crop, size, strict=True))
    part = resized_part(image, size, (left, top, right, bottom), resample)
    if part.size == crop:
        return part
    canvas = Image.new("RGB", crop, (fill, fill, fill))
    x, y = (max(-start, 0) for start in starts)
    canvas.paste(part, (x, y))
    return canvas


def _start(whole: int, kept: int) -> int:
    return round((whole - kept) / 2) if whole >= kept else -((kept - whole) // 2)


def resized_part(
    image: Image.Image, size: tuple[int, int], box: tuple[int, int, int, int], resample: int
) -> Image.Image:
    """`image.resize(size, resample).crop(box)` of an RGB image.

    Raises `ValueError` if the part itself would take gigabytes.
    """
    left, top, right, bottom = box
    width, height = size
    if width * height > WHOLE * (right - left) * (bottom - top) and height >= image.height:
        columns = _Taps(image.width, width, left, right, resample)
        rows = _Taps(image.height, height, top, bottom, resample)
        source = np.asarray(image.crop((columns.first, rows.first, columns.last, rows.last)))
        return Image.fromarray(rows.apply(columns.apply(source.swapaxes(0, 1)).swapaxes(0, 1)))
    require_moderate(image.size, size)
    image = lowered(image, size, resample)
    if right - left == width or image.height > image.width:  # Pillow may shrink a very tall one by columns first
        return image.resize(size, resample).crop(box)
    strip = image.resize((width, image.height), resample).crop((left, 0, right, image.height))
    return strip.resize((right - left, height), resample).crop((0, top, right - left, bottom))


def require_moderate(image: tuple[int, int], size: tuple[int, int]) -> None:
    """Raises ValueError if `size`, to which a whole image of (width, height) is to be resized, takes gigabytes."""
    if size[0] * size[1] > LARGEST:
        raise ValueError(
            f"a photo of {image[0]} x {image[1]} pixels is too thin to be resized to {size[0]} x {size[1]}; crop or "
            "remove it"
        )


def lowered(image: Image.Image, size: tuple[int, int], resample: int) -> Image.Image:
    """`image`, but a very tall one resized to the height of `size`: resizing its rows first would take gigabytes."""
    if size[0] * image.height <= LARGEST or image.height <= size[1]:
        return image
    return image.resize((image.width, size[1]), resample)


class _Taps:
    """Pillow's integer weights of the source pixels for the resized pixels `start` to `stop` along one side.

    `first` and `last`: the source pixels that any of them reads.
    """

    def __init__(self, source: int, resized: int, start: int, stop: int, resample: int):
        scale = source / resized
        stretch = max(scale, 1.0)
        kernel, reach = KERNELS[resample]
        centre = (np.arange(start, stop) + 0.5) * scale
        low = np.maximum((centre - reach * stretch + 0.5).astype(np.int64), 0)
        high = np.minimum((centre + reach * stretch + 0.5).astype(np.int64), source)
        place = low[:, None] + np.arange((high - low).max())
        weight = kernel(np.abs((place - centre[:, None] + 0.5) / stretch)) * (place < high[:, None])
        weight *= 2**PRECISION / weight.sum(axis=1, keepdims=True)
        self.first, self.last = int(low.min()), int(high.max())
        self.place = np.minimum(place, self.last - 1) - self.first  # weight 0 after the last
        self.weight = (weight + np.copysign(0.5, weight)).astype(np.int32)

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [last - first, N, 3] to [stop - start, N, 3]."""
        total = np.full((len(self.place), *pixels.shape[1:]), 1 << (PRECISION - 1), dtype=np.int32)
        for place, weight in zip(self.place.T, self.weight.T, strict=True):
            total += weight[:, None, None] * pixels[place]
        return (total >> PRECISION).clip(0, 255).astype(np.uint8)


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - x, 0)


def _cubic(x: np.ndarray) -> np.ndarray:
    a = -0.5
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))


KERNELS: dict[int, tuple[Callable[[np.ndarray], np.ndarray], int]] = {
    Image.Resampling.BILINEAR: (_triangle, 1),
    Image.Resampling.BICUBIC: (_cubic, 2),
}
