"""Tiny models whose weights are all different, saved, and their exports."""

import torch
from open_clip.hf_model import HFTextEncoder

from clip_itm.cli import main
from clip_itm.configuration import ItmConfig
from clip_itm.model import ItmModel
from support.tiny_backbones import tiny_backbone

LONG = "a dog runs over the grass and " * 30


def saved(kind: str, folder, head: dict | None = None, **options):
    """A tiny model of weights that are all different, saved in `folder`/model, and its processor."""
    return save(*tiny_backbone(kind, folder, **options), folder, head)


def save(backbone, processor, folder, head: dict | None = None):
    if isinstance(getattr(backbone, "text_tower", None), HFTextEncoder):
        processor.max_length = 24  # as many positions as the tiny BERT has
    config = ItmConfig(backbone=backbone.config.model_dump(mode="json"), head=head or {"kind": "clip"})
    model = ItmModel(config, backbone=backbone)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point() and "logit_scale" not in name:
                noise = 0.1 * torch.rand(value.shape, generator=generator)
                value.add_(noise if "running_var" in name else noise - 0.05)
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    return model.eval(), processor


def export(folder, target: str) -> int:
    return main(["export", str(folder / "model"), "--to", target, "--out", str(folder / target)])
