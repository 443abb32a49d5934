"""Images from files or bytes to RGB, the same way everywhere: turned as EXIF says, nothing clipped, nothing guessed."""

import errno
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pyarrow.compute as pc
from PIL import Image, ImageOps

from clip_itm.data.image_names import missing_decoder
from clip_itm.data.tar_members import MEMBER, tar_member

try:  # an extra of Pillow for the images of phones
    from pillow_heif import register_heif_opener
except ImportError:
    pass
else:
    register_heif_opener()

ORIENTATION_TAG = 0x0112
LARGEST_FILE = 2**30  # bytes; the most pixels that Pillow takes, uncompressed with four channels of 16 bits, are fewer
SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")
OF_THE_MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # errors that say nothing about an image
TRANSPARENT_MODES = ("RGBA", "RGBa", "LA", "La", "PA")


def read_image(image: dict, draft_size: int | None = None) -> Image.Image:
    """The RGB image of a row's `image` ({"path": ..., "bytes": ...}).

    `draft_size` (pixels) lets the JPEG decoder shrink by 2, 4 or 8 as long as both sides stay that long: faster, and
    different by about one grey level from shrinking afterwards, so it is for training only.
    Raises ValueError, naming the image, if it is missing, empty, truncated, damaged or suspiciously large.
    """
    with naming_image(image):
        opened = open_image(image)
        if draft_size is not None:
            opened.draft(None, (draft_size, draft_size))
        return to_rgb(opened)


def open_image(image: dict) -> Image.Image:
    """The image with its header read and its pixels not yet decoded."""
    data = image_bytes(image)
    if not data:
        raise ValueError("the file is empty (0 bytes)")
    image = Image.open(io.BytesIO(data))
    if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        # Pillow itself only warns up to twice the limit, and a file of a few kilobytes may unpack to gigabytes
        raise Image.DecompressionBombError(
            f"{image.width} x {image.height} pixels are more than the limit of {Image.MAX_IMAGE_PIXELS:,}"
        )
    return image


def image_bytes(image: dict) -> bytes:
    """The encoded image: stored bytes, or the content of the file, which may be in a tar (`tar_members.py`).

    Raises ValueError for a folder or a pipe in place of a file.
    """
    if image["bytes"] is not None:
        return image["bytes"]
    if tar_member(image["path"]) is not None:
        from clip_itm.data.tar_members import member_bytes

        return member_bytes(tar_member(image["path"]))
    with open(image["path"], "rb", opener=_without_waiting) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("this is no regular file")
        if status.st_size > LARGEST_FILE:
            raise ValueError(f"{status.st_size:,} bytes are too many for a photo; expected at most {LARGEST_FILE:,}")
        return file.read(LARGEST_FILE)


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # reading a pipe would wait forever for its writer


def to_rgb(image: Image.Image) -> Image.Image:
    """Decode and convert: EXIF orientation applied, 16-bit greys scaled by 1/257, transparency laid on white."""
    image.load()  # before EXIF: reading that decodes a PNG too, and a second attempt at a damaged one raises nothing
    if is_turned(image):
        image = ImageOps.exif_transpose(image)
    if image.mode in SIXTEEN_BIT_MODES:
        image = _scale_to_8_bits(image)
    if image.mode in TRANSPARENT_MODES or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.new("RGBA", layer.size, "white")
        image.alpha_composite(layer)
    return image.convert("RGB")


def small_jpeg(image: Image.Image, side: int) -> bytes:
    """A JPEG of an RGB image, shrunk so that its longer side has at most `side` pixels."""
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    small.save(encoded, "JPEG", quality=80)
    return encoded.getvalue()


def thumbnail(image: dict, side: int) -> bytes | None:
    """`small_jpeg` of a stored image ({"path", "bytes"}); None if it cannot be read."""
    try:
        return small_jpeg(read_image(image, draft_size=side), side)
    except ValueError:
        return None


def image_paths(rows, column: str = "image") -> list[str | None]:
    """The file of each image in a column of `datasets.Image(decode=False)`; None if the data set itself holds it.

    The data set also holds those in tars.
    """
    paths = []
    for batch in rows.select_columns([column]).with_format("arrow").iter(batch_size=1000):
        image = batch[column].combine_chunks()
        in_tar = pc.fill_null(pc.match_substring_regex(image.field("path"), MEMBER), False)
        in_file = pc.and_not(image.field("bytes").is_null(), in_tar).to_pylist()
        paths += [path if own else None for path, own in zip(image.field("path").to_pylist(), in_file, strict=True)]
    return paths


def is_turned(image: Image.Image) -> bool:
    """Whether EXIF asks to turn or mirror a decoded image. EXIF that cannot be read asks for nothing."""
    try:
        return image.getexif().get(ORIENTATION_TAG, 1) in range(2, 9)
    except Exception:  # a damaged EXIF block raises anything from SyntaxError to struct.error, and the pixels are fine
        return False


def _scale_to_8_bits(image: Image.Image) -> Image.Image:
    """The image in 8 bits; Pillow's own conversion turns everything above 255 white."""
    grey = np.asarray(image).astype(np.float64)
    brightest = 65535 if grey.max(initial=0) <= 65535 else 2**31 - 1  # mode I holds 16 bits of most files, 32 of some
    return Image.fromarray((grey.clip(0) * (255 / brightest)).round().astype(np.uint8))


class UnreadableImageError(ValueError):
    """An image that cannot be read; the message names it and says what to do.

    From a loader process the message arrives after a traceback: only its own sentence is kept.
    """

    def __init__(self, message: str):
        super().__init__(message.rsplit(f"{type(self).__name__}: ", 1)[-1].strip())


@contextmanager
def naming_image(image: dict | None) -> Iterator[None]:
    """Turn whatever reading and decoding raise into an `UnreadableImageError`."""
    if image is None:
        raise ValueError("there is no photo to read: precomputed regions have photos only with data.images")
    name = image["path"] or "photo stored in the data set"
    try:
        yield
    except FileNotFoundError:
        raise UnreadableImageError(f"{name}: there is no such photo") from None
    except Image.DecompressionBombError as error:
        raise UnreadableImageError(
            f"{name}: {error}; shrink the photo, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
        ) from None
    except Image.UnidentifiedImageError:
        advice = missing_decoder(name) or "replace or remove it"
        raise UnreadableImageError(f"{name}: this is not a photo that Pillow can read; {advice}") from None
    except (PermissionError, IsADirectoryError) as error:
        raise UnreadableImageError(f"{name}: the file cannot be opened ({error.strerror})") from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, ... on damaged files
        if getattr(error, "errno", None) in OF_THE_MACHINE:
            raise ValueError(f"{name}: this machine could not read it ({error}); try again") from error
        raise UnreadableImageError(f"{name}: the photo cannot be decoded ({error}); replace or remove it") from error
