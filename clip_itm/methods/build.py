"""Builds the head that a recipe names."""

from importlib import import_module

from clip_itm.backbones.features import FeatureWidths
from clip_itm.kinds import METHODS
from clip_itm.methods.base import Head


def build_head(
    config, widths: FeatureWidths, initial_logit_scale: float | None = None, initial_logit_bias: float | None = None
) -> Head:
    """The untrained head of a `HeadConfig`, for a backbone with features of these `widths`.

    `initial_logit_scale`: natural log of the pretrained multiplier of cosines, None from scratch;
    `initial_logit_bias`: the bias of towers pretrained with a sigmoid loss.
    """
    module = import_module(f"clip_itm.methods.{config.kind}.head")
    head = getattr(module, f"{METHODS[config.kind]}Head")
    return head.build(config, widths, initial_logit_scale, initial_logit_bias)
