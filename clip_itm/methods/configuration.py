"""`head:` section of a recipe: the method, that is similarity and loss."""

from typing import Annotated

from pydantic import Field

from clip_itm.methods.aahr.configuration import AahrHeadConfig
from clip_itm.methods.clip.configuration import ClipHeadConfig
from clip_itm.methods.crcl.configuration import CrclHeadConfig
from clip_itm.methods.dive.configuration import DiveHeadConfig
from clip_itm.methods.npc.configuration import NpcHeadConfig
from clip_itm.methods.polyloss.configuration import PolyLossHeadConfig
from clip_itm.methods.siglip.configuration import SiglipHeadConfig
from clip_itm.methods.triplet.configuration import TripletHeadConfig

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
