"""Photos of every format, and what can happen to their files."""

import io
import random

import numpy as np
from PIL import Image


def picture(width: int, height: int, seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (1 + height // 6, 1 + width // 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, format: str, **settings) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **settings)
    return file.getvalue()


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a photo of a phone"
    return exif


FORMATS = {
    "JPEG": lambda image: encoded(image, "JPEG"),
    "progressive JPEG": lambda image: encoded(image, "JPEG", progressive=True),
    "turned JPEG": lambda image: encoded(image, "JPEG", exif=turned()),
    "grey JPEG": lambda image: encoded(image.convert("L"), "JPEG"),
    "CMYK JPEG": lambda image: encoded(image.convert("CMYK"), "JPEG"),
    "JPEG with restarts": lambda image: encoded(image, "JPEG", optimize=True, restart_marker_blocks=3),
    "JPEG without subsampling": lambda image: encoded(image, "JPEG", subsampling=0, quality=95),
    "PNG": lambda image: encoded(image, "PNG"),
    "palette PNG": lambda image: encoded(image.convert("P"), "PNG"),
    "clear turned PNG": lambda image: encoded(image.convert("RGBA"), "PNG", exif=turned()),
    "16-bit PNG": lambda image: encoded(Image.fromarray(257 * np.asarray(image.convert("L"), dtype=np.uint16)), "PNG"),
    "WebP": lambda image: encoded(image, "WEBP", exif=turned()),
    "lossless WebP": lambda image: encoded(image, "WEBP", lossless=True),
    "GIF": lambda image: encoded(image, "GIF"),
    "TIFF": lambda image: encoded(image, "TIFF", exif=turned()),
    "LZW TIFF": lambda image: encoded(image, "TIFF", compression="tiff_lzw"),
    "JPEG TIFF": lambda image: encoded(image, "TIFF", compression="jpeg"),
    "BMP": lambda image: encoded(image, "BMP"),
    "AVIF": lambda image: encoded(image, "AVIF"),
    "HEIC": lambda image: encoded(image, "HEIF"),
}

PAGE = b"<!DOCTYPE html><html><body>404 not found</body></html>"

FAULTS = (
    "whole",
    "cut",
    "cut at the end",
    "bit flipped",
    "bits flipped",
    "zeros",
    "dropped",
    "inserted",
    "header",
    "page",
    "empty",
)


def damaged(data: bytes, fault: str, seed: int) -> bytes:
    """The bytes of a photo after a fault of a name in `FAULTS`, somewhere."""
    draw, damaged = random.Random(seed), bytearray(data)
    place = draw.randrange(len(data))
    match fault:
        case "cut":
            del damaged[place:]
        case "cut at the end":
            del damaged[-draw.randrange(1, 12) :]
        case "bit flipped":
            damaged[place] ^= 1 << draw.randrange(8)
        case "bits flipped":
            for _ in range(20):
                damaged[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        case "zeros":
            end = min(len(data), place + draw.randrange(1, 200))
            damaged[place:end] = bytes(end - place)
        case "dropped":
            del damaged[place : place + draw.randrange(1, 50)]
        case "inserted":
            damaged[place:place] = draw.randbytes(draw.randrange(1, 30))
        case "header":
            damaged[draw.randrange(min(len(data), 200))] = draw.randrange(256)
        case "page":
            return PAGE
        case "empty":
            return b""
    return bytes(damaged)
