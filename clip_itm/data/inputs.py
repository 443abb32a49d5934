"""What a user may pass as an image or a text, and how images are read from it."""

import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clip_itm.data.image_names import is_image_name
from clip_itm.data.images import image_bytes, naming_image, read_image, to_rgb

URLS = ("http://", "https://")
LARGEST_DOWNLOAD = 64 * 2**20  # bytes of an image at a URL


def modality_of(value: Any) -> str:
    """ "image" or "text".

    Text that ends like the name of an image file, and a URL, mean that image; {"text": ...} and {"image": ...} leave no
    doubt. Raises ValueError for anything that is neither image nor text.
    """
    if isinstance(value, dict) and len(value) == 1 and (key := next(iter(value))) in ("image", "text"):
        return key
    if isinstance(value, str):
        return "image" if value.startswith(URLS) or is_image_name(value) else "text"
    if isinstance(value, Path | Image.Image | np.ndarray | bytes):
        return "image"
    raise ValueError(
        f"{type(value).__name__} is neither a text nor a photo; expected text, a path or URL of a photo, a PIL image, "
        'an array [H, W, 3] of uint8, bytes of a photo file, {"text": ...} or {"image": ...}'
    )


def load_image(value: Any) -> Image.Image:
    """The RGB image of whatever `modality_of` calls an image. Raises ValueError, naming it."""
    return decode_image(fetch_image(value))


def fetch_image(value: Any) -> dict | np.ndarray | Image.Image:
    """An encoded image as {"path", "bytes"}, read from its file or URL; a decoded image as it is."""
    if isinstance(value, dict) and "image" in value:
        value = value["image"]
    if isinstance(value, str) and value.startswith(URLS):
        return {"path": value, "bytes": _download(value)}
    if isinstance(value, bytes):
        return {"path": None, "bytes": value}
    if isinstance(value, str | Path):
        value = {"path": str(value)}
    if isinstance(value, dict):  # also a row of `datasets`
        image = {"path": value.get("path"), "bytes": value.get("bytes")}
        with naming_image(image):
            return {**image, "bytes": image_bytes(image)}
    if isinstance(value, np.ndarray | Image.Image):
        return value
    raise ValueError(f"{type(value).__name__} is not a photo; expected a path, URL, PIL image, array or bytes")


def decode_image(image: dict | np.ndarray | Image.Image) -> Image.Image:
    """The RGB image of what `fetch_image` gives."""
    if isinstance(image, dict):
        return read_image(image)
    with naming_image({"path": "a PIL image"}):
        return to_rgb(image if isinstance(image, Image.Image) else _from_array(image))


def _from_array(array: np.ndarray) -> Image.Image:
    channels = array.shape[2] if array.ndim == 3 else 1 if array.ndim == 2 else 0
    if array.dtype != np.uint8 or channels not in (1, 3, 4):
        raise ValueError(
            f"an array {list(array.shape)} of {array.dtype} is not a photo; expected [H, W, 3] (or [H, W], [H, W, 4]) "
            "of uint8, values 0 to 255"
        )
    return Image.fromarray(array[:, :, 0] if array.ndim == 3 and channels == 1 else array)


def _download(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            data = answer.read(LARGEST_DOWNLOAD + 1)
    except (OSError, ValueError) as error:
        raise ValueError(f"{url}: cannot download this photo: {error}") from None
    if len(data) > LARGEST_DOWNLOAD:
        raise ValueError(f"{url}: more than {LARGEST_DOWNLOAD // 2**20} MiB, which is too large for a photo")
    return data


def model_inputs(inputs: Sequence[Any], processor) -> dict[str, Tensor]:
    """What a model takes for one batch of images or of texts."""
    if modality_of(inputs[0]) == "image":
        return dict(processor(images=[load_image(value) for value in inputs], return_tensors="pt"))
    return dict(processor(text=[_text_of(value) for value in inputs], return_tensors="pt"))


def embed_all(embed: Callable[[list], Tensor], inputs: Sequence[Any], batch_size: int, progress=None) -> Tensor:
    """Embeddings [n, ...] of images or of texts, by `embed` of a batch; `progress` is a bar that counts them."""
    rows = range(len(inputs))
    if modality_of(inputs[0]) == "text":
        texts = [_text_of(value) for value in inputs]
        distinct = sorted(set(texts), key=lambda text: (len(text), text))  # each once, little padding in a batch
        position = {text: row for row, text in enumerate(distinct)}
        inputs = [{"text": text} for text in distinct]  # "a.jpg" is no image here
        rows = [position[text] for text in texts]
    parts, begun = [], 0 if progress is None else progress.n
    for start in range(0, len(inputs), batch_size):
        parts.append(embed(inputs[start : start + batch_size]))
        if progress is not None:
            progress.update(begun + round(len(rows) * min(1, (start + batch_size) / len(inputs))) - progress.n)
    return torch.cat(parts)[torch.tensor(rows)]


def _text_of(value: str | dict) -> str:
    return value["text"] if isinstance(value, dict) else value
