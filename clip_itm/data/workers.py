"""How many processes read photos for a training process."""

import os
from typing import Literal

MOST = 16  # more do not read faster than one GPU trains
FEW_IMAGES = 2000  # are in memory after one epoch (`KeptPixels`), before loader processes pay for their start


def cores_per_process() -> int:
    """Cores that this process may use, divided among the training processes of this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def loader_processes(wanted: int | Literal["auto"], on_gpu: bool, images: int | None = None) -> int:
    """What `data.num_workers` means for `images` photos (None: nobody knows how many).

    "auto": one less than the cores of each training process, which is busy itself, and at most 16. None (0) if the
    model runs on the same cores, which have no time to spare, and for few photos.

    >>> loader_processes("auto", on_gpu=False)
    0
    """
    if wanted != "auto":
        return wanted
    if not on_gpu or (images is not None and images <= FEW_IMAGES):
        return 0
    return min(MOST, max(0, cores_per_process() - 1))
