"""What checksums cost: loading a saved ViT-B/32 and a checkpoint with its optimizer, with and without checking them.

python benchmarks/integrity.py [--json FILE] [--repeats 3] [--folder DIR]

Needs about 2.5 GB in DIR. "warm": the files are in the page cache; "cold": they were dropped from it before (Linux;
a virtual machine's host may still hold them). Tries alternate, and the fastest counts.
"""

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from io import BytesIO
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from clip_itm.backbones.configuration import OpenClipBackbone
from clip_itm.checksums import check_files, write_checksums
from clip_itm.data.arrays import cached_array, new_array
from clip_itm.files import write_json
from clip_itm.model import ItmModel
from clip_itm.seal import image_in, sealed


def drop_from_memory(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def fastest(work: Callable[[], object], repeats: int) -> float:
    return min(seconds(work) for _ in range(repeats))


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def compare(folder: Path, plain: Callable[[], object], checked: Callable[[], object], repeats: int) -> dict:
    """Seconds of loading what is in `folder` without and with its checksums, and of comparing these alone."""
    found = {"bytes": size_of(folder)}
    plain()
    for state in ("warm", "cold"):
        times = {"load_s": plain, "checked_load_s": checked, "check_s": lambda: check_files(folder)}
        kept = {name: [] for name in times}
        for _ in range(repeats):
            for name, work in times.items():
                if state == "cold":
                    drop_from_memory(folder)
                kept[name].append(seconds(work))
        found[state] = {name: min(values) for name, values in kept.items()}
        found[state]["share"] = found[state]["checked_load_s"] / found[state]["load_s"] - 1
    return found


def make_model(folder: Path) -> ItmModel:
    section = OpenClipBackbone(kind="open_clip", model="ViT-B-32", pretrained=None)
    model = ItmModel.from_backbone(section)
    model.save_pretrained(folder)
    write_checksums(folder)
    return model


def make_checkpoint(model: ItmModel, folder: Path) -> Callable[[], object]:
    """The same with the state of AdamW, two moments for each weight; returns what a resumed run does with it: make a
    model, and load weights and moments."""
    model.save_pretrained(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    write_checksums(folder)

    def load() -> None:
        ItmModel(model.config).load_state_dict(load_file(folder / "model.safetensors"))
        optimizer.load_state_dict(torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True))

    return load


def photo_cost(repeats: int) -> dict:
    """Microseconds to decode a resized photo with a short side of 256, and to compare its checksum."""
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    photo, encoded = Image.fromarray(noise).resize((341, 256), Image.Resampling.BICUBIC), BytesIO()
    photo.save(encoded, "JPEG", quality=95, subsampling=0)
    data = sealed(encoded.getvalue())

    def decode() -> None:
        for _ in range(100):
            Image.open(BytesIO(data)).convert("RGB")

    def check() -> None:
        for _ in range(100):
            image_in(data)

    found = {"decode_us": fastest(decode, repeats) * 1e4, "check_us": fastest(check, repeats) * 1e4}
    return found | {"bytes": len(data), "share": found["check_us"] / found["decode_us"]}


def features_cost(folder: Path, repeats: int) -> dict:
    """Reading 256 MiB of kept features once, as their check does, without encoding anything."""
    path = folder / "features.npy"
    with new_array(path, np.float32, (65536, 1024), "") as array:
        array[:] = 1
    seconds = fastest(lambda: cached_array(path, 65536), repeats)
    return {"bytes": path.stat().st_size, "check_s": seconds, "gigabytes_a_second": path.stat().st_size / seconds / 1e9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="write the figures here")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", metavar="DIR", help="on the disk to measure (default: that of temporary files)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as place:
        folder = Path(place)
        model = make_model(folder / "model")
        load_checkpoint = make_checkpoint(model, folder / "checkpoint")

        def load_model() -> None:
            ItmModel.from_pretrained(folder / "model")

        def load_unchecked() -> None:
            with patch("clip_itm.model.checked_meanwhile", lambda *arguments: nullcontext()):
                load_model()

        def load_checked() -> None:
            check_files(folder / "checkpoint")
            load_checkpoint()

        report = {
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
            "model": compare(folder / "model", load_unchecked, load_model, args.repeats),
            "checkpoint": compare(folder / "checkpoint", load_checkpoint, load_checked, args.repeats),
            "resized photo": photo_cost(args.repeats),
            "features": features_cost(folder, args.repeats),
        }
    for name in ("model", "checkpoint"):
        for state in ("warm", "cold"):
            each = report[name][state]
            print(
                f"{name}, {report[name]['bytes'] / 1e6:,.0f} MB, {state}: loading {each['load_s']:.2f} s, with them "
                f"{each['checked_load_s']:.2f} s ({each['share']:+.1%}); these alone {each['check_s']:.3f} s"
            )
    photo, features = report["resized photo"], report["features"]
    print(f"resized photo, {photo['bytes']:,} bytes: {photo['check_us']:.0f} us beside {photo['decode_us']:.0f} us")
    print(f"kept features: {features['gigabytes_a_second']:.1f} GB/s")
    if args.json:
        write_json(args.json, report)


if __name__ == "__main__":
    main()
