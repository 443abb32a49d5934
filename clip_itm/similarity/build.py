"""The similarity that a section of the recipe names."""

from clip_itm.backbones.features import FeatureWidths
from clip_itm.similarity.base import Similarity
from clip_itm.similarity.configuration import SimilarityConfig


def build_similarity(config: SimilarityConfig, widths: FeatureWidths) -> Similarity:
    """The similarity of a `head.similarity:` section, with new weights, for features of these `widths`.

    Raises ValueError if images and captions have tokens of different widths and `token_dim` is not set.

    Example:
        >>> import torch
        >>> from clip_itm.similarity.configuration import ScanSection
        >>> scan = build_similarity(ScanSection(), FeatureWidths(pooled=8, image_tokens=8, text_tokens=8))
        >>> scan(torch.rand(2, 36, 8), torch.rand(3, 12, 8)).shape  # 2 images of 36 regions, 3 captions of 12 words
        torch.Size([2, 3])
    """
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
