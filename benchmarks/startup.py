"""What a command costs before it does any work: each in processes of its own, on a tiny model and tiny photos.

    python benchmarks/startup.py [--rounds 3]

Processor seconds are those of the process and of what it started, with one thread. Rounds alternate between the cases
and the median counts; ratios are to `import torch` of the same run, and carry over to other machines better.
The lines `libraries` are the floor: what a model of that kind imports before the first line of this package runs.
Nothing is read from the Hub. Prints a table and writes runs/benchmarks/startup.json (or --json FILE).
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from clip_itm.backbones.build import build_processor
from clip_itm.backbones.configuration import OpenClipBackbone
from clip_itm.files import write_json
from clip_itm.model import ItmModel

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
SETTINGS = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
LIBRARIES = "from transformers import AutoModel, AutoTokenizer, CLIPImageProcessor, Pipeline, PreTrainedModel"
COMMAND = "import sys\nfrom clip_itm.cli import main\nif status := main(sys.argv[2:]): sys.exit(status)"
# runs code, and says how many modules were imported in the end
CHILD = """import sys
try:
    exec({code!r})
except SystemExit as ended:
    assert not ended.code, ended
with open(sys.argv[1], "w", encoding="utf-8") as file:
    file.write(str(len(sys.modules)))
"""
SAMPLE = ["--data.source", "sample", "--data.train_images", "16", "--data.val_images", "8", "--data.test_images", "8"]


def make_model(folder: Path) -> None:
    """A model of random weights, photos, and an index of them, in `folder`."""
    section = OpenClipBackbone(model="tiny", model_config_dict={"model_cfg": TINY})
    ItmModel.from_backbone(section).save_pretrained(folder / "model")
    build_processor(section, None).save_pretrained(folder / "model")
    (folder / "photos").mkdir()
    generator = np.random.default_rng(0)
    for number in range(8):
        pixels = generator.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{number}.png")


def make_cases(folder: Path) -> dict[str, tuple[str, list[str]]]:
    """Name -> code and the words after it."""
    model, photos, index = (str(folder / name) for name in ("model", "photos", "index"))
    data = [*SAMPLE, "--data.cache_dir", str(folder / "cache"), "--evaluation.bootstrap", "0"]
    return {
        "import torch": ("import torch", []),
        "libraries: transformers": (LIBRARIES, []),
        "libraries: transformers and open_clip": (f"{LIBRARIES}\nimport open_clip", []),
        "import clip_itm": ("import clip_itm", []),
        "clip-itm --help": (COMMAND, ["--help"]),
        "clip-itm train --help": (COMMAND, ["train", "--help"]),
        "clip-itm index, nothing new": (COMMAND, ["index", model, photos, "--out", index]),
        "clip-itm search, by text": (COMMAND, ["search", model, index, "a dog"]),
        "clip-itm search, by photo": (COMMAND, ["search", model, index, f"{photos}/0.png"]),
        "clip-itm evaluate": (COMMAND, ["evaluate", model, *data]),
    }


def run(code: str, words: list[str], folder: Path) -> tuple[float, float, int]:
    """Wall and processor seconds of a process, and the number of modules in it."""
    counted = folder / "modules.txt"
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", CHILD.format(code=code), str(counted), *words],
        env={**os.environ, **SETTINGS},
        capture_output=True,
        text=True,
    )
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{code} {' '.join(words)}\n{done.stderr}")
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, processor, int(counted.read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/startup.json"), metavar="FILE")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder)
        cases = make_cases(folder)
        found = {name: [] for name in cases}
        run(*cases["clip-itm index, nothing new"], folder)  # makes the index; files are in memory from now on
        for _ in range(args.rounds):
            for name, case in cases.items():
                found[name].append(run(*case, folder))
    medians = {name: [statistics.median(column) for column in zip(*runs, strict=True)] for name, runs in found.items()}
    print(f"{'':40}{'wall s':>8}{'processor s':>13}{'x torch':>9}{'modules':>9}")
    for name, (wall, processor, modules) in medians.items():
        ratio = processor / medians["import torch"][1]
        print(f"{name:40}{wall:8.2f}{processor:13.2f}{ratio:9.2f}{int(modules):9d}")
    keys = ("wall_seconds", "processor_seconds", "modules")
    write_json(args.json, {name: dict(zip(keys, values, strict=True)) for name, values in medians.items()})
    print(f"written to {args.json}")


if __name__ == "__main__":
    main()
