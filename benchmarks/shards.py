"""What reading photos costs from files, from tars and from Parquet, and what a million pairs in tars cost.

    python benchmarks/shards.py rates [--photos FOLDER]
    python benchmarks/shards.py scale [--pairs 1000000]

`rates`: photos per processor second, one thread, of whole training batches (read, decoded, resized to 224, normalised;
captions tokenized), compared with the `webdataset` package, if it is installed, and a plain torch Dataset, on the same
photos in alternating rounds; the median round counts. Ranges come through fsspec from the same disk: this measures the
code, not a network. COCO photos of ../shared/data are used if they are there.

`scale`: tars of 10,000 photos of 16 x 16 pixels are made; then, each in a process of its own, the first start (the
index is made), a second start, and an epoch of batches. Memory is what is the process's own (anonymous), and what is
mapped from files and can be given back at any time.
"""

import argparse
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torchvision import transforms

from clip_itm.backbones.build import build_processor
from clip_itm.backbones.configuration import OpenClipBackbone
from clip_itm.data.batches import PairDataset
from clip_itm.data.configuration import FolderData, ParquetData, WebDatasetData
from clip_itm.data.image_cache import ImageCache
from clip_itm.data.load import load_splits
from clip_itm.data.noise import CaptionNoise
from clip_itm.data.pixels import Pixels
from clip_itm.data.remote import PLACE as REMOTE_CACHE
from clip_itm.data.rows import Split
from clip_itm.data.sampler import PairBatchSampler
from clip_itm.data.tokens import CaptionTokens
from clip_itm.files import write_json

BATCH = 64
PER_TAR = 10_000
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PLAIN = transforms.Compose(
    [
        transforms.Resize(224, transforms.InterpolationMode.BICUBIC),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
)
MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 224, "layers": 1, "width": 16, "patch_size": 32, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("what", choices=("rates", "scale", "start", "epoch"))
    shared = Path(os.environ.get("CLIP_ITM_REAL_DATA", "../shared/data"))
    parser.add_argument("--photos", type=Path, default=shared / "coco_mini" / "val2017", help="folder of JPEGs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--batches", type=int, help="of the epoch (default: all)")
    parser.add_argument("--folder", type=Path, help="where tars are made and kept (default: a temporary one)")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    if args.what in ("start", "epoch"):
        print(json.dumps(start(args.folder) if args.what == "start" else epoch(args.folder, args.batches)))
        return
    with tempfile.TemporaryDirectory() as folder:
        place = args.folder or Path(folder)
        results = rates(args.photos, place, args.rounds) if args.what == "rates" else scale(place, args)
    for name, value in results.items():
        print(f"{name:60}{value:14,.4g}")
    write_json(args.out / f"shards_{args.what}.json", results)


# Rates ----------------------------------------------------------------------------------------------------------------


def rates(photos: Path, place: Path, rounds: int) -> dict[str, float]:
    """Photos per processor second of each way."""
    paths = sorted(photos.glob("*.jpg")) or made_photos(place / "made")
    cache = str(place / "cache")
    (place / "tiny.json").write_text(json.dumps(MODEL), encoding="utf-8")
    processor = build_processor(OpenClipBackbone(model=str(place / "tiny.json")), None)
    sources = {
        "files (data.source folder)": FolderData(root=str(table_of(paths, place / "table")), cache_dir=cache),
        "tars (webdataset)": WebDatasetData(root=str(tars_of(paths, place / "tars")), cache_dir=cache),
        "Parquet (parquet)": ParquetData(root=str(parquet_of(paths, place / "parquet")), cache_dir=cache),
    }
    ways: dict[str, Callable[[], int]] = {}
    for name, data in sources.items():
        train = load_splits(data)["train"]
        ways[name] = lambda train=train: batches_of(train, processor)
        copies = ImageCache(place / "copies", 256)
        copies.build(train.rows)
        if not name.startswith("Parquet"):
            ways[f"{name}, data.cache_images: 256"] = lambda train=train, kept=copies: batches_of(
                train, processor, kept
            )
    ways["plain torch Dataset of files"] = lambda: sum(
        1 for path in paths if PLAIN(Image.open(path).convert("RGB")) is not None
    )
    if (package := of_the_package(place / "tars")) is not None:
        ways["webdataset, the package"] = package
    os.environ[REMOTE_CACHE] = str(place / "ranges")  # one of its own, which is emptied
    ranges = load_splits(WebDatasetData(root=f"file://{place.absolute() / 'tars'}", cache_dir=cache))["train"]
    ways["tars by ranges (file://), all in the cache"] = lambda: batches_of(ranges, processor)

    def from_the_storage() -> int:
        shutil.rmtree(place / "ranges", ignore_errors=True)
        return batches_of(ranges, processor)

    ways["tars by ranges (file://), nothing in the cache"] = from_the_storage
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            begun = time.process_time()
            count = way()
            found[name].append(count / (time.process_time() - begun))
    return {name: statistics.median(values) for name, values in found.items()}


def batches_of(split: Split, processor, cache: ImageCache | None = None) -> int:
    """Read all batches of an epoch; returns the number of photos."""
    tokens = CaptionTokens(split.pairs.captions, processor)
    pixels, noise = Pixels(processor), CaptionNoise.clean(split.pairs)
    dataset = PairDataset(split, noise, processor, image_cache=cache, tokens=tokens, pixels=pixels)
    sampler = PairBatchSampler(split.pairs.image, "unique", min(BATCH, len(split)))
    return sum(len(pixels.normalize(dataset.__getitems__(pairs)["pixel_values"])) for pairs in sampler)


def of_the_package(tars: Path) -> Callable[[], int] | None:
    try:
        import webdataset
    except ImportError:
        return None

    def read() -> int:
        urls = [str(path) for path in sorted(tars.glob("train-*.tar"))]
        data = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode("pil").to_tuple("jpg", "txt")
        return sum(1 for image, _ in data if PLAIN(image.convert("RGB")) is not None)

    return read


def made_photos(folder: Path, count: int = 200) -> list[Path]:
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for number in range(count):
        small = Image.fromarray(draw.integers(0, 256, (30, 40, 3), dtype=np.uint8))
        small.resize((640, 480), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=90)
    return sorted(folder.glob("*.jpg"))


def with_splits(paths: list[Path]) -> Iterator[tuple[str, int, Path]]:
    """All photos in train, and copies of a few in val, which are not measured."""
    yield from (("train", number, path) for number, path in enumerate(paths))
    yield from (("val", len(paths) + number, path) for number, path in enumerate(paths[:4]))


def table_of(paths: list[Path], folder: Path) -> Path:
    folder.mkdir(parents=True)
    lines = ["file_name,caption,split"]
    for split, number, path in with_splits(paths):
        copy = folder / f"{number:06d}.jpg"
        copy.write_bytes(path.read_bytes())
        lines.append(f"{copy},photo {number},{split}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def tars_of(paths: list[Path], folder: Path) -> Path:
    folder.mkdir(parents=True)
    with (
        tarfile.open(folder / "train-0.tar", "w", encoding="utf-8") as train,
        tarfile.open(folder / "val-0.tar", "w", encoding="utf-8") as val,
    ):
        for split, number, path in with_splits(paths):
            add((train if split == "train" else val).fileobj, f"{number:06d}.jpg", path.read_bytes())
            add((train if split == "train" else val).fileobj, f"{number:06d}.txt", f"photo {number}".encode())
    return folder


def parquet_of(paths: list[Path], folder: Path) -> Path:
    folder.mkdir(parents=True)
    for wanted in ("train", "val"):
        own = [(number, path) for split, number, path in with_splits(paths) if split == wanted]
        columns = {"jpg": [path.read_bytes() for _, path in own], "caption": [f"photo {number}" for number, _ in own]}
        columns["uid"] = [str(number) for number, _ in own]
        pq.write_table(pa.table(columns), folder / f"{wanted}.parquet", row_group_size=100)
    return folder


# Scale ----------------------------------------------------------------------------------------------------------------


def scale(place: Path, args: argparse.Namespace) -> dict[str, float]:
    """Seconds and bytes of a start with many pairs."""
    begun = time.perf_counter()
    size = many_tars(place / "tars", args.pairs)
    found = {"pairs": args.pairs, "tars, bytes": size, "making them, seconds": time.perf_counter() - begun}
    for name, what in (("first start", "start"), ("second start", "start"), ("epoch", "epoch")):
        words = [sys.executable, __file__, what, "--folder", str(place)]
        words += ["--batches", str(args.batches)] if args.batches else []
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
        found |= {f"{name}: {key}": value for key, value in json.loads(done.stdout.splitlines()[-1]).items()}
    for kept in ("tars", f"{WebDatasetData.model_fields['source'].default}"):
        files = [path for path in (place / "cache").rglob("*.arrow") if kept in path.relative_to(place / "cache").parts]
        found[f"kept on disk, bytes: {'index' if kept == 'tars' else 'rows'}"] = sum(
            path.stat().st_size for path in files
        )
    return found


def many_tars(folder: Path, pairs: int) -> int:
    """Tars of tiny photos with captions of about 50 characters; returns their bytes."""
    if folder.is_dir():
        return sum(path.stat().st_size for path in folder.iterdir())
    folder.mkdir(parents=True)
    draw, photos = np.random.default_rng(0), []
    for _ in range(1000):
        file = io.BytesIO()
        Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file, "JPEG")
        photos.append(file.getvalue())
    for first in range(0, pairs, PER_TAR):
        with (folder / f"{first // PER_TAR:05d}.tar").open("wb") as file:
            for number in range(first, min(first + PER_TAR, pairs)):
                add(file, f"{number:09d}.jpg", photos[number % 1000])
                caption = f"a photo of thing number {number} beside thing {number % 7919}"
                add(file, f"{number:09d}.txt", caption.encode())
            file.write(bytes(1024))
    return sum(path.stat().st_size for path in folder.iterdir())


def add(file, name: str, content: bytes) -> None:
    """Write a member of a tar, at a tenth of the cost of `tarfile`."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    file.write(member.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % 512))


def memory() -> dict[str, int]:
    """Bytes of this process: its own, and mapped from files."""
    with open("/proc/self/smaps_rollup", encoding="utf-8") as file:
        lines = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in file if line.endswith("kB\n")}
    return {"own": lines["Anonymous"], "mapped": lines["Rss"] - lines["Anonymous"]}


def start(place: Path) -> dict[str, float]:
    """Seconds and bytes until batches could be drawn."""
    before, clock, processor_time = memory(), time.perf_counter(), time.process_time()
    train = load_splits(data_of(place))["train"]
    loaded = memory()
    noise = CaptionNoise.draw(train.pairs, 0.4, "caption", 99)
    sampler = PairBatchSampler(train.pairs.image, "unique", 1024)
    assert all((len(sampler), noise.sha256, train.sha256))
    after = memory()
    return {
        "seconds": time.perf_counter() - clock,
        "processor seconds": time.process_time() - processor_time,
        "rows, own bytes": loaded["own"] - before["own"],
        "with pairs, noise, hashes and batches, own bytes": after["own"] - before["own"],
        "of an empty process, own bytes": before["own"],
        "mapped, bytes": after["mapped"] - before["mapped"],
        "training pairs": len(train.pairs),
    }


def epoch(place: Path, batches: int | None) -> dict[str, float]:
    """Rate of batches of 1,024 photos at 32 x 32 pixels, and how much memory has grown."""
    model = MODEL | {"vision_cfg": MODEL["vision_cfg"] | {"image_size": 32}}
    (place / "tiny.json").write_text(json.dumps(model), encoding="utf-8")
    processor = build_processor(OpenClipBackbone(model=str(place / "tiny.json")), None)
    train = load_splits(data_of(place))["train"]
    dataset = PairDataset(train, CaptionNoise.clean(train.pairs), processor)
    sampler = PairBatchSampler(train.pairs.image, "unique", 1024)
    clock = time.perf_counter()
    drawn = iter(sampler)
    dataset.__getitems__(next(drawn))
    first, before, processor_time, count = time.perf_counter() - clock, memory(), time.process_time(), 0
    for pairs in drawn:
        dataset.__getitems__(pairs)
        count += len(pairs)
        if batches is not None and count >= 1024 * batches:
            break
    return {
        "first batch, seconds": first,
        "photos read": count,
        "photos a processor second": count / (time.process_time() - processor_time),
        "growth of own bytes": memory()["own"] - before["own"],
        "growth of mapped bytes": memory()["mapped"] - before["mapped"],
    }


def data_of(place: Path) -> WebDatasetData:
    return WebDatasetData(
        root=str(place / "tars"),
        cache_dir=str(place / "cache"),
        check_photos=False,
        val_fraction=0.01,
        test_fraction=0.01,
    )


if __name__ == "__main__":
    main()
