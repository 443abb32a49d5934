"""The similarity that a section of the recipe names."""

from clip_itm.backbones.features import FeatureWidths
from clip_itm.similarity.base import Similarity
from clip_itm.similarity.configuration import SimilarityConfig


def build_similarity(config: SimilarityConfig, widths: FeatureWidths) -> Similarity:
    match config.kind:
        case "cosine":
            from clip_itm.similarity.cosine import Cosine

            return Cosine()
        case "scan":
            from clip_itm.similarity.scan import Scan

            return Scan(config, widths)
        case "saf":
            from clip_itm.similarity.saf import Saf

            return Saf(config, widths)
        case "sgr":
            from clip_itm.similarity.sgr import Sgr

            return Sgr(config, widths)
