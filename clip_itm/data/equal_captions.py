"""Which captions are equal: one caption of many photos, as in product data."""

import unicodedata
from collections.abc import Iterable

import numpy as np

from clip_itm.data.noise import CaptionNoise
from clip_itm.data.rows import Pairs

AT_THE_END = " .,;:!?\u2026\u3002\uff0c\uff01\uff1f"  # also of Chinese and Japanese sentences


def plain_text(caption: str) -> str:
    """The part of a caption that is compared: two captions are equal if this text is the same.

    Composed Unicode (NFC) without case (`str.casefold`), every run of white space as one space, none at either end, and
    without the punctuation `. , ; : ! ? ...` at the end. Everything else counts: other words, another order,
    punctuation within. A caption of punctuation alone is compared as it is.

    Example:
        >>> plain_text("  Red\\tMUG!"), plain_text("red, mug"), plain_text("...")
        ('red mug', 'red, mug', '...')
    """
    text = unicodedata.normalize("NFC", " ".join(caption.casefold().split()))
    return text.rstrip(AT_THE_END) or text


def number_captions(captions: Iterable[str]) -> np.ndarray:
    """Numbers int64 [N], the same for captions that are equal (see `plain_text`), in order of first appearance.

    Example:
        >>> number_captions(["Red mug", "blue mug", "red mug."])
        array([0, 1, 0])
    """
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(plain_text(caption), len(numbers)) for caption in captions], dtype=np.int64)


def numbers_of(pairs: Pairs) -> np.ndarray:
    """The numbers of all captions of a split, int64 [Nt]; see `number_captions`."""
    return number_captions(pairs.captions.to_pylist())


def numbers_if_asked(head, pairs: Pairs, noise: CaptionNoise) -> np.ndarray | None:
    """`caption_numbers` if the section `head` of a recipe has a `same_caption` other than negative, else None."""
    asked = getattr(head, "same_caption", "negative") != "negative"
    return caption_numbers(pairs, noise) if asked else None


def caption_numbers(pairs: Pairs, noise: CaptionNoise) -> np.ndarray:
    """The number of the caption that each pair has in training (the one from `noise`), int64 [N]."""
    return numbers_of(pairs)[noise.source]
