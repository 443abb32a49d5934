"""How fast photos reach the model: raw files, the cache of resized photos, and whole training batches of every mode.

    python benchmarks/loading.py [--photos FOLDER] [--workers 0] [--short-side 256]

Everything is compared with a plain torch Dataset (PIL and torchvision transforms, one photo per pair) on the same
photos in the same run, in alternating rounds, and the median round counts. COCO photos in the neighbouring folder
../shared/data are used if they are there, else JPEGs of 640 x 480 that the program makes.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset as Rows
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms

from clip_itm.backbones.build import build_processor
from clip_itm.backbones.configuration import OpenClipBackbone
from clip_itm.data.batches import PairDataset
from clip_itm.data.image_cache import ImageCache
from clip_itm.data.images import read_image
from clip_itm.data.noise import CaptionNoise
from clip_itm.data.rows import ROW_FEATURES, Split
from clip_itm.data.sampler import PairBatchSampler
from clip_itm.files import write_json

CAPTIONS_PER_PHOTO = 5
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class PlainDataset(torch.utils.data.Dataset):
    """What one writes without a toolkit: one pair per item, its photo decoded each time."""

    def __init__(self, paths: list[str], pairs_per_photo: int):
        self.paths, self.pairs_per_photo = paths, pairs_per_photo
        self.transform = transforms.Compose(
            [
                transforms.Resize(224, transforms.InterpolationMode.BICUBIC),
                transforms.CenterCrop(224),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths) * self.pairs_per_photo

    def __getitem__(self, pair: int) -> torch.Tensor:
        with Image.open(self.paths[pair // self.pairs_per_photo]) as image:
            return self.transform(image.convert("RGB"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    shared = Path(os.environ.get("CLIP_ITM_REAL_DATA", "../shared/data"))
    parser.add_argument("--photos", type=Path, default=shared / "coco_mini" / "val2017", help="folder of JPEGs")
    parser.add_argument("--workers", type=int, default=0, help="loader processes; 0: this one alone")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--short-side", type=int, default=256, help="of the cache of resized photos")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/loading.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(path) for path in sorted(args.photos.glob("*.jpg"))] or make_photos(Path(folder))
        results = measure(paths, Path(folder), args)
    print(f"{len(paths)} photos ({results['origin']}), {args.workers} workers, median of {args.rounds} rounds\n")
    print(f"{'':44}{'photos/s':>9}{'pairs/s':>9}")
    for name, rates in results["rates"].items():
        print(f"{name:44}{rates['photos_per_second']:9.0f}{rates['pairs_per_second']:9.0f}")
    print(f"\nbuilding the cache once: {results['cache_photos_per_second']:.0f} photos/s")
    write_json(args.out, results)
    print(f"written to {args.out}")


def make_photos(folder: Path, count: int = 160) -> list[str]:
    """Photo-like JPEGs: smooth colours with grain, 640 x 480."""
    generator = np.random.default_rng(0)
    paths = []
    for number in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize((640, 480), Image.Resampling.BICUBIC)) + generator.normal(0, 8, (480, 640, 1))
        paths.append(str(folder / f"{number:04d}.jpg"))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(paths[-1], quality=90)
    return paths


def make_split(paths: list[str]) -> Split:
    captions = [[f"photo {n} seen for the {k}th time" for k in range(CAPTIONS_PER_PHOTO)] for n in range(len(paths))]
    rows = {
        "image": [{"path": path, "bytes": None} for path in paths],
        "image_id": [Path(path).stem for path in paths],
        "captions": captions,
        "caption_ids": [[f"{n}#{k}" for k in range(CAPTIONS_PER_PHOTO)] for n in range(len(paths))],
    }
    return Split("train", Rows.from_dict(rows, features=ROW_FEATURES))


def measure(paths: list[str], folder: Path, args: argparse.Namespace) -> dict:
    split = make_split(paths)
    processor = build_processor(OpenClipBackbone(), None)
    cache = ImageCache(folder / "cache", args.short_side)
    start = time.perf_counter()
    cache.build(split.rows)
    building = time.perf_counter() - start

    plain = PlainDataset(paths, 1), PlainDataset(paths, CAPTIONS_PER_PHOTO)
    stored = split.rows["image"]
    cases: dict[str, Callable[[], tuple[int, int]]] = {
        "plain Dataset, each photo once": lambda: run_plain(plain[0], args),
        "read_image + processor, raw files": lambda: run_photos(stored, processor, args.batch_size),
        f"read_image + processor, {args.short_side}-px cache": lambda: run_photos(
            [cache.image(image) for image in stored], processor, args.batch_size
        ),
        "plain Dataset, pairs": lambda: run_plain(plain[1], args),
    }
    for mode in ("random", "unique", "grouped"):
        for where, image_cache in (("raw files", None), (f"{args.short_side}-px cache", cache)):
            dataset = PairDataset(split, CaptionNoise.clean(split.pairs), processor, image_cache=image_cache)
            cases[f"PairDataset, {mode} batches, {where}"] = lambda mode=mode, dataset=dataset: run_pairs(
                dataset, mode, split, args
            )
    seconds, counts = {name: [] for name in cases}, {}
    for _ in range(args.rounds):
        for name, case in cases.items():
            start = time.perf_counter()
            counts[name] = case()
            seconds[name].append(time.perf_counter() - start)
    rates = {}
    for name, (photos, pairs) in counts.items():
        median = statistics.median(seconds[name])
        rates[name] = {"photos_per_second": photos / median, "pairs_per_second": pairs / median}
    return {
        "origin": "made here" if Path(paths[0]).is_relative_to(folder) else "given folder",
        "photos": len(paths),
        "batch_size": args.batch_size,
        "workers": args.workers,
        "rounds": args.rounds,
        "cache_photos_per_second": len(paths) / building,
        "rates": rates,
    }


def run_plain(dataset: PlainDataset, args: argparse.Namespace) -> tuple[int, int]:
    """Photos decoded and pairs delivered."""
    loader = DataLoader(dataset, args.batch_size, shuffle=True, num_workers=args.workers)
    pairs = sum(len(batch) for batch in loader)
    return pairs, pairs


def run_photos(stored: list[dict], processor, batch_size: int) -> tuple[int, int]:
    for start in range(0, len(stored), batch_size):
        processor(images=[read_image(image) for image in stored[start : start + batch_size]], return_tensors="pt")
    return len(stored), len(stored)


def run_pairs(dataset: PairDataset, mode: str, split: Split, args: argparse.Namespace) -> tuple[int, int]:
    sampler = PairBatchSampler(split.pairs.image, mode, args.batch_size, CAPTIONS_PER_PHOTO)
    loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=as_it_is, num_workers=args.workers)
    sizes = [(len(batch["pixel_values"]), len(batch["image_index"])) for batch in loader]
    return tuple(np.sum(sizes, axis=0).tolist())


def as_it_is(batch):
    return batch


if __name__ == "__main__":
    main()
