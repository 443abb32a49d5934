"""How far the pixels of every kind of backbone are from those of its own reference processor, over 40 sizes of photos.

Files have six modes: RGB, grey, CMYK, palette, 16-bit grey and turned by EXIF. The reference gets the RGB photo that
our reader makes of such a file.

    python benchmarks/pixels.py [--exports] [--thin] [--speed FOLDER]

`--exports`: also for what `clip-itm export` writes, read by the target's own loader. `--thin`: peak memory and time for
thin photos, each in a process of its own. `--speed`: photos per processor second, for the JPEGs in a folder. Models are
small and made here, with random weights; no network.
"""

import argparse
import io
import resource
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import numpy as np
import open_clip
import timm.data
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    BertConfig,
    CLIPConfig,
    CLIPImageProcessor,
    SiglipConfig,
    SiglipImageProcessor,
    ViTConfig,
    ViTImageProcessor,
)

from clip_itm.backbones.build import build_processor
from clip_itm.backbones.configuration import (
    BertVitBackbone,
    OpenClipBackbone,
    TimmWordsBackbone,
    TransformersBackbone,
)
from clip_itm.backbones.openclip_source import openai_tokenizer
from clip_itm.data.images import read_image

SIDE = 224
SIZES = [(SIDE + more, SIDE) for more in range(8)] + [(SIDE, SIDE + more) for more in range(1, 8)]
SIZES += [(640, 427), (427, 640), (500, 334), (334, 500), (640, 480), (480, 640), (500, 375), (1024, 767), (767, 1024)]
SIZES += [(333, 333), (97, 31), (31, 97), (1, 1), (1, 2), (2, 1), (1, 50), (50, 1), (3, 7), (1500, 90), (90, 1500)]
SIZES += [(2000, 1500), (1500, 2000), (4000, 3000), (900, 10), (10, 900)]
CAPTIONS = ["a dog on the grass", "two dogs on the grass"]
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": SIDE, "layers": 1, "width": 32, "head_width": 16, "patch_size": 32},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
THIN = [(640, 427), (4000, 3), (20_000, 3), (40_000, 3), (3, 40_000)]


def photo(size: tuple[int, int]) -> Image.Image:
    """Smooth, with some noise, as a photo is."""
    draw = np.random.default_rng(list(size))
    smooth = Image.fromarray(draw.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    return Image.fromarray(
        (np.asarray(smooth) + draw.normal(0, 8, (size[1], size[0], 3))).clip(0, 255).astype(np.uint8)
    )


@cache
def as_read(size: tuple[int, int]) -> list[Image.Image]:
    """The same photo from a file of each mode."""
    colour, turned = photo(size), Image.Exif()
    turned[0x0112] = 6
    grey = colour.convert("L")
    png = {"format": "PNG", "compress_level": 1}
    files = [(colour, png), (grey, png), (colour.convert("CMYK"), {"format": "JPEG"}), (colour.quantize(64), png)]
    files += [(Image.fromarray(np.asarray(grey).astype(np.uint16) * 257), png)]
    files += [(colour, {"format": "JPEG", "exif": turned})]
    read = []
    for image, options in files:
        file = io.BytesIO()
        image.save(file, **options)
        read.append(read_image({"path": None, "bytes": file.getvalue()}))
    assert read[-1].size == size[::-1]
    return read


def kinds(folder: Path) -> dict:
    """Name -> (processor or the reason why there is none, reference: a photo to its pixels [3, H, W])."""
    square = {"height": SIDE, "width": SIDE}
    made = {}
    for mode in ("shortest", "squash", "longest"):
        source = {"model_cfg": TINY, "preprocess_cfg": {"resize_mode": mode}}
        section = OpenClipBackbone(model="tiny", model_config_dict=source)
        made[f"open_clip, {mode}"] = section, open_clip.image_transform(SIDE, False, resize_mode=mode)
    made["open_clip, OpenAI's ViT-B/32"] = (
        OpenClipBackbone(model="ViT-B-32-quickgelu"),
        open_clip.image_transform(SIDE, False),
    )
    section = TimmWordsBackbone(min_word_count=1)
    options = {"mean": section.image_mean, "std": section.image_std, "crop_pct": 1.0, "interpolation": "bicubic"}
    made["timm-words"] = section, timm.data.create_transform((3, SIDE, SIDE), **options)
    own = {"clip": CLIPImageProcessor(), "siglip": SiglipImageProcessor(), "vit": ViTImageProcessor(size=square)}
    configs = {"clip": CLIPConfig(), "siglip": SiglipConfig(), "vit": ViTConfig(), "bert": BertConfig()}
    for name, config in configs.items():
        config.save_pretrained(folder / name)
        openai_tokenizer().save_pretrained(folder / name)
        if name in own:
            own[name].save_pretrained(folder / name)
    for name in ("clip", "siglip"):
        made[f"transformers, {name}"] = TransformersBackbone(model=str(folder / name)), _transform(own[name])
    section = BertVitBackbone(text_model=str(folder / "bert"), vision_model=str(folder / "vit"))
    made["bert-vit"] = section, _transform(own["vit"])
    return made


def _transform(processor):
    return lambda image: processor(image, return_tensors="pt")["pixel_values"][0]


def compare(pixels, reference, std) -> str:
    """Cells of the table; `pixels`: a photo to [3, H, W]."""
    largest, equal = [], []
    for image in (image for size in SIZES for image in as_read(size)):
        difference = (pixels(image) - reference(image)).abs() * torch.tensor(std)[:, None, None] * 255
        largest.append(difference.max().item())
        equal.append((difference < 0.5).float().mean().item())
    wrong = sum(most > 2.5 for most in largest)
    return f"{max(largest):.1f} | {100 * min(equal):.2f} % | {wrong} of {len(largest)}"


def print_kinds(folder: Path) -> None:
    print("| kind | largest difference in levels | equal values, worst photo | photos far off |\n|---|---|---|---|")
    for name, (section, reference) in kinds(folder).items():
        try:
            processor = build_processor(section, CAPTIONS)
        except ValueError as error:
            print(f"| {name} | refused: {error} | | |")
            continue
        ours = _transform(lambda image, processor=processor, **_: processor(images=[image]))
        print(f"| {name} | {compare(ours, reference, processor.image_processor.image_std)} |", flush=True)


def print_exports(folder: Path) -> None:
    """The exports of a model of open_clip, against the processor that it was trained with."""
    from clip_itm.hub.export import export
    from clip_itm.model import ItmModel

    section = OpenClipBackbone(model="tiny", model_config_dict={"model_cfg": TINY})
    processor = build_processor(section, None)
    ItmModel.from_backbone(section).save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    loaders = {
        "open_clip": lambda place: open_clip.create_model_and_transforms(f"local-dir:{place}")[-1],
        "transformers": lambda place: _transform(AutoProcessor.from_pretrained(place, trust_remote_code=True)),
        "onnx": lambda place: _transform(AutoImageProcessor.from_pretrained(place, trust_remote_code=True)),
    }
    ours = _transform(lambda image, **_: processor(images=[image]))
    print("\n| export of open_clip | largest difference | equal values, worst photo | shifted |\n|---|---|---|---|")
    for target, loader in loaders.items():
        export(folder / "model", target, folder / target)
        print(
            f"| {target} | {compare(loader(folder / target), ours, processor.image_processor.image_std)} |", flush=True
        )


def print_thin() -> None:
    print("\n| photo | peak memory above the start, MB | seconds |\n|---|---|---|")
    for width, height in THIN:
        command = [sys.executable, __file__, "--one", str(width), str(height)]
        try:
            result = subprocess.run(command, capture_output=True, text=True, timeout=60)
            cells = result.stdout.strip() or f"ended with {result.returncode} | "
        except subprocess.TimeoutExpired:
            cells = " | more than 60"
        print(f"| {width} x {height} | {cells} |", flush=True)


def one(width: int, height: int) -> None:
    processor = build_processor(OpenClipBackbone(model="tiny", model_config_dict={"model_cfg": TINY}), None)
    processor(images=[photo((64, 64))])
    image, before = Image.new("RGB", (width, height)), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.perf_counter()
    processor(images=[image])
    seconds = time.perf_counter() - begin
    print(f"{(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024:.0f} | {seconds:.2f}")


def print_speed(folder: Path) -> None:
    torch.set_num_threads(1)
    processor = build_processor(OpenClipBackbone(model="tiny", model_config_dict={"model_cfg": TINY}), None)
    files = sorted(folder.rglob("*.jpg"))[:200]
    best = {"decoding": 1e9, "preprocessing": 1e9}
    for _ in range(3):
        begin = time.process_time()
        photos = [read_image({"path": str(file), "bytes": None}) for file in files]
        middle = time.process_time()
        for start in range(0, len(photos), 32):
            processor(images=photos[start : start + 32])
        spent = {"decoding": middle - begin, "preprocessing": time.process_time() - middle}
        best = {name: min(best[name], spent[name]) for name in best}
    rates = {name: len(files) / seconds for name, seconds in [*best.items(), ("both", sum(best.values()))]}
    print("\n" + ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items()) + " photos a processor second")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exports", action="store_true")
    parser.add_argument("--thin", action="store_true")
    parser.add_argument("--speed", type=Path)
    parser.add_argument("--one", nargs=2, type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return one(*args.one)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        print_kinds(Path(folder))
        if args.exports:
            print_exports(Path(folder))
    if args.thin:
        print_thin()
    if args.speed:
        print_speed(args.speed)
    return None


if __name__ == "__main__":
    main()
