"""Kill `clip-itm index` at random moments, over a gallery that changes: the index is always the old one or a later one.

    python -m support.kill_index FOLDER MOMENTS

The command runs in forks of one process that has imported everything, so that the moments fall into its work. It saves
after every 4 photos. After each kill every item must have the embedding of the content that it says it was made from;
every fifth run is left to end, and then the index must be that of the photos as they are, with no file too many.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from clip_itm.cli import main
from clip_itm.data.inputs import fetch_image
from clip_itm.retrieval import indexing
from clip_itm.retrieval.images import content_of
from clip_itm.retrieval.index import LocalIndex
from clip_itm.retrieval.pipeline import load_pipeline
from clip_itm.retrieval.storage import index_damages, named_files, read_index_file
from support.bad_input.retrieval import model

PHOTOS = 24


def change(photos: Path, draw: random.Random) -> None:
    """Replace, add and take away a few photos."""
    for _ in range(6):
        pixels = np.random.default_rng(draw.randrange(2**32)).integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / f"{draw.randrange(PHOTOS):02d}.png")
    (photos / f"{draw.randrange(PHOTOS):02d}.png").unlink(missing_ok=True)


def run(words: list[str], seconds: float | None) -> float:
    """The command in a fork, killed after some seconds; how long it took."""
    start = time.perf_counter()
    child = os.fork()
    if child == 0:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        os._exit(main(words))
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), f"the command failed with {status}"
    return time.perf_counter() - start


def embeddings(index: LocalIndex) -> dict[int, torch.Tensor]:
    items = list(index.items())
    values = index.embeddings_of([item.id for item in items])
    return {item.content: value for item, value in zip(items, values, strict=True)}


def kill(place: Path, moments: int) -> dict[str, int]:
    model(place)
    photos, gallery = place / "photos", place / "gallery"
    photos.mkdir()
    indexing.SAVE_EVERY = 4
    draw, told = random.Random(0), {"kills": 0, "kills that left a commit of their own": 0, "whole runs": 0}
    pipe, known = load_pipeline(place / "model"), {}
    words = ["index", str(place / "model"), str(photos), "--out", str(gallery), "--batch-size", "2", "--prune"]
    for _ in range(PHOTOS):
        change(photos, draw)
    longest = 0.0
    for moment in range(moments):
        change(photos, draw)
        known |= embeddings(pipe.index(photos))
        before = (gallery / "index.json").read_bytes() if gallery.exists() else None
        whole = moment % 5 == 0
        took = run(words, None if whole else draw.random() * longest)
        longest = max(longest, took) if whole else longest
        told["whole runs" if whole else "kills"] += 1
        if not (gallery / "index.json").exists():
            continue
        assert index_damages(gallery) == []
        index = LocalIndex.load(gallery, pipe.model_sha256, verify=True)
        for content, value in embeddings(index).items():
            torch.testing.assert_close(value, known[content], rtol=0, atol=1e-5)
        if not whole:
            told["kills that left a commit of their own"] += (gallery / "index.json").read_bytes() != before
            continue
        now = {file.name: content_of(fetch_image(file)) for file in photos.iterdir()}
        assert {item.id: item.content for item in index.items()} == now
        own = {"index.json"} | {file["name"] for file in named_files(read_index_file(gallery)[0])}
        assert {file.name for file in gallery.iterdir()} == own, "the next run clears what killed ones left"
    return told


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(kill(Path(sys.argv[1]), int(sys.argv[2])))
