"""Small JPEGs of photos for a page."""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from tqdm.auto import tqdm

from clip_itm.auditing.photos import Photos
from clip_itm.data.images import thumbnail


def make_thumbnails(photos: Photos, numbers: Iterable[int], side: int) -> dict[int, bytes | None]:
    """By number, a JPEG with at most `side` pixels per side; None if there is no photo, or none that can be read."""
    numbers = sorted(set(numbers))
    if not len(photos):
        return dict.fromkeys(numbers)

    def small(number: int) -> bytes | None:
        return thumbnail(photos.row(number)["image"], side)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        made = tqdm(pool.map(small, numbers), total=len(numbers), desc="small photos", leave=False)
        return dict(zip(numbers, made, strict=True))
