"""`head:` section of a recipe: the method, that is similarity and loss."""

from typing import Annotated, Literal

from pydantic import Field

from clip_itm.heads.aahr.configuration import AahrHeadConfig
from clip_itm.heads.crcl.configuration import CrclHeadConfig
from clip_itm.heads.dive.configuration import DiveHeadConfig
from clip_itm.heads.npc.configuration import NpcHeadConfig
from clip_itm.heads.polyloss.configuration import PolyLossHeadConfig
from clip_itm.heads.section import ContrastiveSection
from clip_itm.heads.siglip.configuration import SiglipHeadConfig
from clip_itm.heads.similarity.configuration import CosineSection, SimilarityConfig
from clip_itm.heads.triplet.configuration import TripletHeadConfig


class ClipHeadConfig(ContrastiveSection):
    """The plain contrastive head (InfoNCE in both directions)."""

    kind: Literal["clip"] = "clip"
    similarity: SimilarityConfig = CosineSection()


HeadConfig = Annotated[
    ClipHeadConfig
    | NpcHeadConfig
    | CrclHeadConfig
    | DiveHeadConfig
    | AahrHeadConfig
    | PolyLossHeadConfig
    | TripletHeadConfig
    | SiglipHeadConfig,
    Field(discriminator="kind"),
]
