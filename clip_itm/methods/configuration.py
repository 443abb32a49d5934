"""`head:` section of a recipe: the method, that is, similarity and loss."""

from functools import reduce
from importlib import import_module
from operator import or_
from typing import Annotated

from pydantic import Field

from clip_itm.kinds import METHODS

_SECTIONS = (
    getattr(import_module(f"clip_itm.methods.{kind}.configuration"), f"{stem}HeadConfig")
    for kind, stem in METHODS.items()
)
HeadConfig = Annotated[reduce(or_, _SECTIONS), Field(discriminator="kind")]
