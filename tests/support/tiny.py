"""A model, a recipe and data that train in seconds, for several test files."""

import json
from pathlib import Path

from clip_itm.recipe import Recipe, parse_recipe

TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
SMALL = {"token_dim": 16, "max_words": 20}
HEADS = {  # that need little time, with what each has of its own
    "dive": {"kind": "dive", "image_elements": 2, "text_elements": 2, "module": {"kind": "slots", "head_dim": 8}},
    "aahr": {"kind": "aahr", "embed_dim": 16, "num_heads": 2, "prototypes_after": 0, "graph_after": 0},
    "polyloss": {"kind": "polyloss", "score_map": "affine"},
    "siglip": {"kind": "siglip"},
    "robust": {"kind": "robust", "loss": "tal"},
    "osa": {"kind": "osa", "loss": "gce"},
    "scan": {"kind": "triplet", "similarity": {"kind": "scan", **SMALL}},
    "saf": {"kind": "crcl", "similarity": {"kind": "saf", "regions": 4, "similarity_dim": 8, **SMALL}},
    "sgr": {"kind": "clip", "similarity": {"kind": "sgr", "regions": 4, "similarity_dim": 8, **SMALL}},
}


def tiny_recipe(folder: Path, **sections: dict) -> Recipe:
    """The embedded sample at its smallest: 40 training photos, 200 pairs, 6 batches of 32 an epoch."""
    architecture = folder / "tiny_clip.json"
    architecture.write_text(json.dumps(TINY_CLIP))
    content = {
        "output_dir": str(folder / "run"),
        "data": {"source": "sample", "train_images": 40, "val_images": 12, "test_images": 12, "image_size": 32},
        "noise": {"ratio": 0.4},
        "backbone": {"kind": "open_clip", "model": str(architecture)},
        "training": {
            "epochs": 3,
            "batch_size": 32,
            "learning_rate": 1e-3,
            "warmup": 0.1,
            "trackers": [],
            "log_every": 2,
        },
        "evaluation": {"bootstrap": 20},
    }
    for name, keys in sections.items():
        content[name] = {**content.get(name, {}), **keys}
    content["data"]["cache_dir"] = str(folder / "cache")
    return parse_recipe(content, "tiny recipe")


def save_tiny_model(folder: Path) -> None:
    """`tiny.json`, a CLIP, and `model` below a folder, with random weights of it."""
    from clip_itm import load_model

    (folder / "tiny.json").write_text(json.dumps(TINY_CLIP))
    model = load_model({"kind": "open_clip", "model": str(folder / "tiny.json")})
    model.save_pretrained(folder / "model")
    model.processor.save_pretrained(folder / "model")
