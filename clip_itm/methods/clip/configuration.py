"""`head: {kind: clip}`: the plain contrastive loss."""

from typing import Literal

from clip_itm.methods.section import ContrastiveSection
from clip_itm.similarity.configuration import CosineSection, SimilarityConfig


class ClipHeadConfig(ContrastiveSection):
    """The plain contrastive head (InfoNCE in both directions)."""

    kind: Literal["clip"] = "clip"
    similarity: SimilarityConfig = CosineSection()
