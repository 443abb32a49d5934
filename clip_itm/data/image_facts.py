"""What an image is, and what is wrong or unusual about it."""

import hashlib
from dataclasses import dataclass

from PIL import Image

from clip_itm.data.images import (
    SIXTEEN_BIT_MODES,
    TRANSPARENT_MODES,
    image_bytes,
    is_turned,
    naming_image,
    open_image,
    to_rgb,
)

EXTREME = "extremely shaped"
EXTREME_RATIO = 50  # of the longer to the shorter side
SMALLEST_SIDE = 4  # pixels
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class ImageFacts:
    """Facts about one image: the digest of its bytes, what is wrong with it, and what is unusual about it."""

    digest: str | None = None
    problem: str | None = None  # "truncated" or "unreadable"
    message: str = ""
    format: str = "unknown"
    traits: tuple[str, ...] = ()  # greyscale, palette, CMYK, 16-bit, transparent, EXIF-rotated, extreme shape


def inspect_image(image: dict) -> ImageFacts:
    """Decode a row's `image` ({"path", "bytes"}) completely and describe it; raises nothing for a broken one."""
    digest, kind, traits = None, "unknown", ()
    try:
        with naming_image(image):
            data = image_bytes(image)
            digest = hashlib.blake2b(data, digest_size=16).hexdigest()
            opened = open_image({"path": image["path"], "bytes": data})
            kind = opened.format
            opened.load()
            traits = _traits(opened, data)
            to_rgb(opened)
    except ValueError as error:
        problem = "truncated" if "truncated" in str(error).lower() else "unreadable"
        return ImageFacts(digest, problem, str(error), kind, traits)
    return ImageFacts(digest, format=kind, traits=traits)


def _traits(image: Image.Image, data: bytes) -> tuple[str, ...]:
    # Pillow opens 16-bit colour PNGs as 8-bit RGB; only the header tells
    sixteen_bit = image.mode in SIXTEEN_BIT_MODES or (data[:8] == PNG_SIGNATURE and data[24:25] == b"\x10")
    found = {
        "greyscale": image.mode in ("1", "L", "LA", "La", *SIXTEEN_BIT_MODES),
        "palette": image.mode in ("P", "PA"),
        "CMYK": image.mode == "CMYK",
        "16-bit": sixteen_bit,
        "transparent": image.mode in TRANSPARENT_MODES or "transparency" in image.info,
        "EXIF-rotated": is_turned(image),
        EXTREME: min(image.size) < SMALLEST_SIDE or max(image.size) > EXTREME_RATIO * min(image.size),
    }
    return tuple(trait for trait, is_there in found.items() if is_there)
