"""A fine-tuned model taken elsewhere: a native open_clip or transformers folder, or ONNX, checked before it counts.

Every target is a module with `write(model, processor, folder)`, `embed(folder, pixel_values, captions)` by the means of
the target alone, and `usage(model, processor)`, what its reader has to know. What is written is loaded again and has to
give the embeddings of the model: no table of names is trusted.
"""

import shutil
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from clip_itm.checksums import check_files, write_checksums
from clip_itm.files import filling, model_folder, write_text
from clip_itm.model import ItmModel
from clip_itm.processing import ItmProcessor
from clip_itm.training.stored import read_provenance

TARGETS = ("open_clip", "transformers", "onnx")
TOLERANCE = 1e-5  # largest difference between numbers of unit vectors
PROBES = (
    "a dog runs over the grass",
    "two people",
    "an old house on a hill behind a red car, two bicycles, a tree without leaves and a woman who reads a newspaper",
    "a child and " * 200 + "a ball",  # longer than any text tower reads
)


def export(place: str | Path, target: str, out: str | Path) -> float:
    """Write the model in `place` (a run folder, or a saved model) for `target` into the new folder `out`.

    Returns the largest difference between embeddings of the model and of what was written. Raises ValueError for a
    head that needs more than the towers, and for towers that the target cannot hold.
    """
    source = model_folder(place)
    with filling(out) as folder:
        model = ItmModel.from_pretrained(source).eval()
        processor = ItmProcessor.from_pretrained(source)
        demand_plain_head(model)
        model = model.without_lora()
        module = import_module(f"clip_itm.hub.export_{target}")
        module.write(model, processor, folder)
        difference = check(model, processor, folder, module.embed)
        check_files(source, ("provenance.json", "recipe.yaml"))
        for name in ("provenance.json", "recipe.yaml"):
            if (source / name).is_file():
                shutil.copy(source / name, folder / name)
        usage = module.usage(model, processor)
        write_text(folder / "README.md", readme(target, model, source, difference, usage))
        write_checksums(folder)
    return difference


def demand_plain_head(model: ItmModel) -> None:
    if not model.head.is_plain:
        raise ValueError(
            f"the head {model.head.config.kind} compares photos and captions by parameters or rules of its own, and no "
            "target has a place for them; share this model as it is (ItmModel.from_pretrained loads it). Heads that "
            "compare by the cosine of the towers' features, such as clip, npc and crcl, can be exported"
        )


@torch.inference_mode()
def check(model: ItmModel, processor: ItmProcessor, folder: Path, embed) -> float:
    """The largest difference between embeddings of `model` and those of `embed(folder, pixel_values, captions)`.

    Raises ValueError where it is above `TOLERANCE`, and for a processor that is not the model's.
    """
    draw = np.random.default_rng(0)
    photos = [Image.fromarray(draw.integers(0, 256, (240, 320, 3), dtype=np.uint8)) for _ in PROBES]
    batch = processor(images=photos, text=list(PROBES))
    try:
        own_images = model.encode_images(batch["pixel_values"])
        own_texts = model.encode_texts(batch["input_ids"], batch["attention_mask"])
    except (IndexError, RuntimeError) as error:
        raise ValueError(f"this model cannot read what the processor beside it makes: {error}") from error
    images, texts = embed(folder, batch["pixel_values"], list(PROBES))
    gaps = {
        "photos": (images - own_images).abs().max().item(),
        "captions": (texts - own_texts).abs().max().item(),
    }
    for what, gap in gaps.items():
        if not gap <= TOLERANCE:
            raise ValueError(
                f"the exported model gives other embeddings of {what} (difference {gap:.2g}, at most {TOLERANCE:g}), "
                "so nothing was written: these towers have something that the target does not know"
            )
    return max(gaps.values())


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
