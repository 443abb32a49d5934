"""The list of all keys of a recipe: nothing is missing, nothing stands twice, each says what it takes and means."""

from typing import Annotated, Literal

import pytest
from pydantic import Field, PositiveInt

from clip_itm.key_list import as_text, list_keys, title
from clip_itm.keys import all_keys
from clip_itm.recipe import Recipe
from clip_itm.section import Section, filled_in

GROUPS = list_keys(Recipe)
FILLED_IN = {
    "backbone.special_token_ids",
    "backbone.hidden_word_id",
    "backbone.model_config_dict",
    "backbone.text_model_config",
    "backbone.vocab_size",
    "backbone.mask_token_id",
}
SECTIONS = {"data", "noise", "backbone", "head", "training", "evaluation"}
SECTIONS |= {"head.similarity", "head.module"}  # the keys within are written; head.loss is a word of some kinds, too


class Round(Section):
    """A round one."""

    kind: Literal["round"] = "round"
    size: PositiveInt = Field(3, description="of it")
    radius: Annotated[float, Field(gt=0, le=1)] | None = Field(None, description="how far")


class Square(Section):
    """A square one. And more."""

    kind: Literal["square"] = "square"
    size: PositiveInt = Field(3, description="of it")
    corners: tuple[Literal["sharp", "blunt"], ...] = Field(("sharp",), description="of which sort")
    places: dict[str, bool] = Field({"a": True}, description="where")
    vocabulary: list[str] | None = filled_in("a whole")


class Shapes(Section):
    shape: Annotated[Round | Square, Field(discriminator="kind")] = Square()
    root: str = Field(description="a folder")


def test_a_list_as_text():
    assert as_text(list_keys(Shapes)).splitlines() == [
        "recipe:",
        "  --root text (required): a folder",
        "shape:",
        "  --shape.kind round|square (default square)",
        "      round: A round one.",
        "      square: A square one. And more.",
        "  --shape.size integer > 0 (default 3): of it",
        "shape, kind round:",
        "  --shape.radius number in (0, 1]|null (default null): how far",
        "shape, kind square:",
        "  --shape.corners list of sharp or blunt (default [sharp]): of which sort",
        "  --shape.places {text: true or false, ...} (default {a: true}): where",
    ]


def test_every_key_is_listed_except_those_that_the_program_fills_in():
    listed = {key.name for group in GROUPS for key in group.keys}
    assert listed == {key for key, _ in all_keys(Recipe)} - FILLED_IN - SECTIONS


def test_every_key_and_kind_says_what_it_means():
    silent = [key.name for group in GROUPS for key in group.keys if not key.meaning and not group.choices]
    silent += [kind for group in GROUPS for kind, meaning in group.choices.items() if not meaning]
    assert silent == []


def test_no_key_is_listed_twice_for_a_kind():
    """What kinds share stands once; what differs stands with the kinds that it belongs to."""
    for section in {group.section for group in GROUPS}:
        seen: dict[str, set] = {}
        for group in GROUPS:
            for key in group.keys if group.section == section else ():
                kinds = set(group.kinds or group.of or ["all"])
                assert not seen.setdefault(key.name, set()) & kinds, (key.name, title(group))
                seen[key.name] |= kinds
    once = [key.name for group in GROUPS for key in group.keys]
    assert once.count("data.cache_images") == once.count("backbone.lora.rank") == once.count("noise.ratio") == 1


@pytest.mark.parametrize(
    ("name", "values", "default"),
    [
        ("training.betas", ("[number in [0, 1), number in [0, 1)]",), "[0.9, 0.98]"),
        ("backbone.text_projection", ("true", "false", "mlp"), "true"),
        ("backbone.lora", ("the keys below it", "null"), "null"),
        ("training.guard.drop", ("number in [0, 600]",), None),
        ("data.split_files", ("{train or val or test: text, ...}", "null"), "null"),
        ("head.kind", ("clip", "npc"), "clip"),
    ],
)
def test_what_keys_take(name, values, default):
    key = next(key for group in GROUPS for key in group.keys if key.name == name)
    assert key.values[: len(values)] == values
    assert key.default == default
