"""A fine-tuned model for other programs: a native open_clip or transformers folder, or ONNX, checked before it counts.

Every target is a module with `write(model, processor, folder)`; `pixels(folder, images)` and `embed(folder,
images, captions)`, which use only the target's own means; and `usage(model, processor)`, for its README.
What is written is loaded again and has to give the model's pixels and embeddings: no table of names is trusted.
"""

import logging
import shutil
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clip_itm.checksums import check_files, write_checksums
from clip_itm.files import filling, model_folder, write_text
from clip_itm.image_processing import PIXEL_KEYS, OpenClipImageProcessor
from clip_itm.model import ItmModel
from clip_itm.processing import ItmProcessor
from clip_itm.runs.stored import read_provenance

log = logging.getLogger(__name__)

TARGETS = ("open_clip", "transformers", "onnx")
TOLERANCE = 1e-5  # largest difference between elements of unit vectors
PROBES = (
    "a dog runs over the grass",
    "two people",
    "an old house on a hill behind a red car, two bicycles, a tree without leaves and a woman who reads a newspaper",
    "a child and " * 200 + "a ball",  # longer than any text tower reads
)


def export(place: str | Path, target: str, out: str | Path) -> float:
    """Write the model in `place` (a run folder, or a saved model) for `target` into the new folder `out`.

    `target`: "open_clip", "transformers" or "onnx". Returns the largest difference between embeddings of the model and
    of what was written. Raises ValueError for a head that needs more than the towers, and for towers that the target
    cannot hold.

    Example::

        export("runs/my", "open_clip", "my-open-clip")
    """
    source = model_folder(place)
    with filling(out) as folder:
        model = ItmModel.from_pretrained(source).eval()
        processor = ItmProcessor.from_pretrained(source)
        require_plain_head(model)
        model = model.without_lora()
        module = import_module(f"clip_itm.hub.export_{target}")
        module.write(model, processor, folder)
        difference = check(model, processor, folder, module.embed)
        samples = describe_pixels(processor, folder, target, module.pixels)
        check_files(source, ("provenance.json", "recipe.yaml"))
        for name in ("provenance.json", "recipe.yaml"):
            if (source / name).is_file():
                shutil.copy(source / name, folder / name)
        usage = module.usage(model, processor)
        write_text(folder / "README.md", readme(target, model, source, difference, f"{usage.strip()}\n\n{samples}"))
        write_checksums(folder)
    return difference


def require_plain_head(model: ItmModel) -> None:
    """Raises ValueError if a head compares by more than the cosine of the towers' features."""
    if not model.head.is_plain:
        raise ValueError(
            f"the head {model.head.config.kind} compares photos and captions with parameters or rules of its own, "
            "which no target has a place for; share this model as it is (ItmModel.from_pretrained loads it). Heads "
            "that compare by the cosine of the towers' features can be exported"
        )


@torch.inference_mode()
def check(model: ItmModel, processor: ItmProcessor, folder: Path, embed) -> float:
    """The largest difference between embeddings of `model` and those of `embed(folder, images, captions)`.

    `images` are as the processor returns them, by name. Raises ValueError if the difference is above `TOLERANCE`, and
    for a processor that is not the model's.
    """
    draw = np.random.default_rng(0)
    samples = [Image.fromarray(draw.integers(0, 256, (240, 320, 3), dtype=np.uint8)) for _ in PROBES]
    batch = processor(images=samples, text=list(PROBES))
    try:
        photos = {key: batch[key] for key in PIXEL_KEYS if key in batch}
        own_images = model.encode_images(**photos)
        own_texts = model.encode_texts(batch["input_ids"], batch["attention_mask"])
    except (IndexError, RuntimeError) as error:
        raise ValueError(f"this model cannot read what its processor makes: {error}") from error
    images, texts = embed(folder, photos, list(PROBES))
    gaps = {
        "photos": (images - own_images).abs().max().item(),
        "captions": (texts - own_texts).abs().max().item(),
    }
    for what, gap in gaps.items():
        if not gap <= TOLERANCE:
            raise ValueError(
                f"the exported model gives other embeddings of {what} (difference {gap:.2g}, at most {TOLERANCE:g}), "
                "so nothing was written: these towers have something that the target does not support"
            )
    return max(gaps.values())


@dataclass(frozen=True)
class PixelGap:
    """How pixels of two processors differ: by how many grey levels at most, and in what fraction of the values."""

    levels: float
    fraction: float

    @property
    def is_small(self) -> bool:
        """At most the rounding of another library (Pillow, torchvision): a level or two at one value in a hundred."""
        return self.levels < 2.5 and self.fraction <= 0.01

    def __str__(self) -> str:
        return f"up to {self.levels:.0f} grey levels at {100 * self.fraction:.1f} % of the values"


def pixel_gap(processor, ours: Tensor, theirs: Tensor) -> PixelGap:
    """The gap between pixels [P, 3, H, W], or patches [P, T, p * p * 3], of two processors that scale like `processor`.

    Raises ValueError for different shapes.
    """
    if ours.shape != theirs.shape:
        raise ValueError(f"the exported preprocessing turns photos into {list(theirs.shape)}, not {list(ours.shape)}")
    std = torch.tensor(processor.image_std if processor.do_normalize else [1.0] * 3)
    std = std[:, None, None] if ours.ndim == 4 else std.repeat(ours.shape[2] // 3)
    levels = (ours - theirs).abs() * std / (processor.rescale_factor if processor.do_rescale else 1)
    return PixelGap(levels.max().item(), (levels > 0.5).float().mean().item())


def draw_samples(height: int, width: int) -> list[Image.Image]:
    """Random images for an input of that size: odd, thin and tiny ones, and some whose centre crop begins between two
    pixels."""
    sizes = [(width + more, height) for more in (0, 1, 2, 3, 7)] + [(width, height + more) for more in (1, 3, 5)]
    sizes += [(640, 427), (427, 640), (500, 334), (97, 31), (3, 50), (90, 7), (1, 1)]
    draw = np.random.default_rng(0)
    coarse = [Image.fromarray(draw.integers(0, 256, (9, 9, 3), dtype=np.uint8)) for _ in sizes]
    return [sample.resize(size, Image.Resampling.BICUBIC) for sample, size in zip(coarse, sizes, strict=True)]


def describe_pixels(processor: ItmProcessor, folder: Path, target: str, pixels) -> str:
    """A sentence for README.md on `pixels(folder, images)`, which have to be those that `processor` returns.

    Raises ValueError if it is not. open_clip has only its own crop: a CLIP of transformers, whose processor cuts images
    at another pixel, gets open_clip's, and the sentence says what that changes.
    """
    images = processor.image_processor
    *_, height, width = processor(images=[Image.new("RGB", (8, 8))])["pixel_values"].shape
    samples = draw_samples(height, width)
    ours, theirs = processor(images=samples)["pixel_values"], pixels(folder, samples)
    gap = pixel_gap(images, ours, theirs)
    reachable = gap
    if target == "open_clip" and not isinstance(images, OpenClipImageProcessor):
        twin = OpenClipImageProcessor.of(images)
        reachable = pixel_gap(images, twin(samples, return_tensors="pt")["pixel_values"], theirs)
    if not reachable.is_small:
        raise ValueError(
            f"the exported preprocessing gives other pixels than the model's ({reachable}), so nothing was written: "
            "it has something that the target does not support"
        )
    if not gap.is_small:
        note = (
            "open_clip cuts the centre of photos at half a pixel rounded to even, the processor that this model was "
            f"trained with rounds down: a quarter of all photos are one pixel apart (drawn ones: {gap})."
        )
        log.warning("%s: %s", target, note)
        return note
    sentence = (
        f"{len(samples)} drawn photos of many sizes, read by these means, had the pixels of the model's processor"
    )
    sentence += "." if gap.levels < 0.5 else f" but for rounding ({gap})."
    if target != "open_clip" and isinstance(images, OpenClipImageProcessor):
        plain = pixel_gap(images, ours, pixels(folder, samples, trust_remote_code=False))
        aside = "" if plain.is_small else " and cuts a quarter of them one pixel aside"
        sentence += (
            " `trust_remote_code=True` runs `clip_itm_image_processing.py` of this folder. Without it "
            f"`CLIPImageProcessor` of transformers reads photos{aside} (drawn ones: {plain})."
        )
    return sentence


def readme(target: str, model: ItmModel, source: Path, difference: float, usage: str) -> str:
    """How to load the folder, and where it comes from."""
    return f"""# An image-text matching model, for {target}

Exported by `clip-itm export --to {target}` from {_origin(model, source)}.

{usage.strip()}

Photos and captions are compared by cosine; {model.head.scale().item():.6g} (`exp(logit_scale)`) is the multiplier of
cosines. When this folder was written, it was loaded again, and its embeddings of drawn photos and of captions differed
from the model's by at most {difference:.1g}.
"""


def _origin(model: ItmModel, source: Path) -> str:
    backbone, head = model.backbone.config.kind, model.head.config.kind
    made = f"a model with the backbone `{backbone}`, trained with the head `{head}`"
    if not (source / "provenance.json").is_file():
        return made
    known = read_provenance(source / "provenance.json")
    noise = known["noise"]
    return (
        f"{made}: recipe `{known['recipe_sha256']}`, noise `{noise['sha256']}` (ratio {noise['ratio']:g}). "
        "`recipe.yaml` and `provenance.json` say the rest"
    )
