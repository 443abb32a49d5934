"""The one base of every typed section of a recipe.

Sections live next to what they configure (`data/configuration.py`, `backbones/configuration.py`, ...) and import
nothing heavy, so that `clip-itm --help` and the validation of a recipe never wait for torch.
"""

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

LARGEST = 2**32 - 1  # of the integers in a recipe; the largest seed
Seed = Annotated[int, Field(ge=0, le=LARGEST)]  # what NumPy takes


def filled_in(meaning: str) -> Any:
    """A key that the program writes into what it saves; lists of keys leave it out."""
    return Field(None, description=f"filled in by the program: {meaning}", json_schema_extra={"filled_in": True})


class RecipeError(ValueError):
    """A recipe that cannot be used; the message names the file and every wrong key."""


class Section(BaseModel):
    """A frozen part of the recipe: unknown keys are errors, defaults are validated like given values.

    Numbers are finite and integers at most `LARGEST`; text contains neither NUL nor half of a surrogate pair.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        protected_namespaces=(),
        coerce_numbers_to_str=True,  # a folder called 2024, in a recipe that is built in Python
        allow_inf_nan=False,
    )

    @field_validator("*")
    @classmethod
    def _can_be_used(cls, value):
        for item in _parts(value):
            if isinstance(item, int) and abs(item) > LARGEST:
                raise ValueError(f"no number of a recipe is larger than {LARGEST:,}")
            if isinstance(item, str) and "\0" in item:
                raise ValueError("there is a NUL in it, which no name and no path can have")
            if isinstance(item, str) and not item.isascii() and any("\ud800" <= letter <= "\udfff" for letter in item):
                raise ValueError("there is a byte or half a character in it that is no text of Unicode (UTF-8)")
        return value


def _parts(value: Any) -> Iterator[Any]:
    """A value, or the items of a list or mapping (except a mapping's integers, which are for another program)."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from _parts(item)
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from (part for part in (name, *_parts(item)) if isinstance(part, str))
    else:
        yield value
