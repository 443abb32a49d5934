"""The head that a section of the recipe names."""

from clip_itm.backbones.features import FeatureWidths
from clip_itm.methods.base import Head
from clip_itm.methods.clip.head import ClipHead
from clip_itm.methods.configuration import HeadConfig
from clip_itm.similarity.build import build_similarity


def build_head(
    config: HeadConfig,
    widths: FeatureWidths,
    initial_logit_scale: float | None = None,
    initial_logit_bias: float | None = None,
) -> Head:
    """`widths`: of the backbone's features; `initial_logit_scale`: natural log of the pretrained multiplier of
    cosines, None from scratch; `initial_logit_bias`: that of towers pretrained with a sigmoid loss."""
    match config.kind:
        case "clip":
            return ClipHead(config, initial_logit_scale, build_similarity(config.similarity, widths))
        case "npc":
            from clip_itm.methods.npc.head import NpcHead

            return NpcHead(config, initial_logit_scale)
        case "crcl":
            from clip_itm.methods.crcl.head import CrclHead

            return CrclHead(config, build_similarity(config.similarity, widths))
        case "dive":
            from clip_itm.methods.dive.head import DiveHead

            return DiveHead(config, widths, initial_logit_scale)
        case "aahr":
            from clip_itm.methods.aahr.head import AahrHead

            return AahrHead(config, widths)
        case "polyloss":
            from clip_itm.methods.polyloss.head import PolyLossHead

            return PolyLossHead(config, build_similarity(config.similarity, widths))
        case "triplet":
            from clip_itm.methods.triplet.head import TripletHead

            return TripletHead(config, build_similarity(config.similarity, widths))
        case "siglip":
            from clip_itm.methods.siglip.head import SiglipHead

            similarity = build_similarity(config.similarity, widths)
            return SiglipHead(config, initial_logit_scale, initial_logit_bias, similarity)
