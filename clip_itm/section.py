"""The one base of every typed section of a recipe.

Sections live beside what they configure (`data/configuration.py`, `backbones/configuration.py`, ...) and import nothing
heavy, so that `clip-itm --help` and the validation of a recipe never wait for torch.
"""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A frozen part of the recipe: unknown keys are errors, defaults are validated like given values."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        protected_namespaces=(),
        coerce_numbers_to_str=True,  # YAML reads a folder called 2024 as a number
    )
