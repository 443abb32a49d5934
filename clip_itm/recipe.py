"""The typed recipe: one YAML file, overrides on the command line, errors that name the key and its neighbours.

Nothing here imports torch, so that a typing mistake is reported at once.
"""

import difflib
import hashlib
import json
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from clip_itm.backbones.configuration import BackboneConfig
from clip_itm.data.configuration import DataConfig, NoiseSection, SampleData
from clip_itm.heads.configuration import ClipHeadConfig, HeadConfig
from clip_itm.section import Section
from clip_itm.training.configuration import EvaluationSection, TrainingSection


class RecipeError(ValueError):
    """A recipe that cannot be used; the message names the file and every wrong key."""


class Recipe(Section):
    """Everything that one run depends on."""

    output_dir: str = Field("runs/run", description="folder of the run: checkpoints, tables, saved recipe and noise")
    data: DataConfig = SampleData()
    noise: NoiseSection = NoiseSection()
    backbone: BackboneConfig
    head: HeadConfig = ClipHeadConfig()
    training: TrainingSection = TrainingSection()
    evaluation: EvaluationSection = EvaluationSection()

    @field_validator("head", mode="before")
    @classmethod
    def _head_without_kind_is_plain(cls, value):
        return {"kind": "clip", **value} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _head_fits_training(self) -> "Recipe":
        if problem := self.head.conflict(self.training):
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _backbone_reads_the_data(self) -> "Recipe":
        regions = self.data.source == "regions"
        if regions != (self.backbone.kind == "regions"):
            raise ValueError(
                f"data.source {self.data.source} and backbone.kind {self.backbone.kind} do not fit: precomputed "
                "regions are read by backbone.kind regions, and by it alone"
            )
        if regions and self.data.global_vectors != (self.backbone.global_dim is not None):
            raise ValueError(
                "backbone.global_dim is the width of the vectors that data.global_vectors: true brings along: set "
                "both, or neither"
            )
        return self

    @property
    def sha256(self) -> str:
        """Hash of what decides the outcome: folders, loader processes, logging and evaluation batches are left out."""
        content = self.model_dump(mode="json")
        del content["output_dir"], content["training"]["trackers"], content["training"]["log_every"]
        del content["evaluation"]["batch_size"]
        for key in ("cache_dir", "num_workers"):
            content["data"].pop(key)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def with_overrides(self, *overrides: str) -> "Recipe":
        """A copy with `--section.key value` overrides applied."""
        return parse_recipe(apply_overrides(self.model_dump(mode="json"), list(overrides)), "recipe")

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_recipe(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """The recipe of a YAML file (or of the run folder that holds one), with `--section.key value` overrides.

    Paths in a recipe are relative to the current folder. Raises `RecipeError` for a missing or broken file, unknown
    keys and wrong types.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / "recipe.yaml").is_file():
            raise RecipeError(
                f"{path}: no recipe.yaml in this folder, so it is no run; expected a run or a recipe file"
            )
        path = path / "recipe.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: cannot read the recipe ({error.strerror}); shipped ones are in recipes/") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: a recipe is a mapping with the sections {', '.join(Recipe.model_fields)}")
    return parse_recipe(apply_overrides(content, list(overrides)), str(path))


def parse_recipe(content: dict[str, Any], origin: str) -> Recipe:
    """Validate a nested mapping; `origin` names it in errors. Raises `RecipeError` with a line per wrong key."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        lines = [f"{origin}: {_explain(problem)}" for problem in error.errors()]
        raise RecipeError("\n".join(lines)) from None


def apply_overrides(content: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Merge `--a.b value` / `--a.b=value` pairs into a nested mapping; values are YAML.

    Where they choose another `source` or `kind`, keys of the file that belong to the former one are left behind.
    """
    before, content = content, json.loads(json.dumps(content))
    words, given = iter(overrides), set()
    for word in words:
        key, equals, value = word.partition("=")
        if not key.startswith("--") or len(key) == 2:
            raise RecipeError(f"{word!r}: overrides are written --section.key value, such as --noise.ratio 0.4")
        if not equals:
            value = next(words, None)
            if value is None or (value.startswith("--") and len(value) > 2):
                raise RecipeError(f"{key}: the value is missing (write {key} VALUE)")
        *parents, leaf = key[2:].split(".")
        target = content
        for parent in parents:
            child = target.get(parent)
            target[parent] = target = child if isinstance(child, dict) else {}
        try:
            target[leaf] = yaml.safe_load(value)
        except yaml.YAMLError:
            target[leaf] = value
        given.add((*parents, leaf))
    _leave_behind(Recipe, before, content, given)
    return content


def _leave_behind(owner: type[Section], before: dict, content: dict, given: set[tuple], path: tuple = ()) -> None:
    """Drop keys of the file from sections for which an override has chosen another kind, where that has no such key.

    A section within such a section goes as a whole, where the other kind has none of its kind.
    """
    for name, field in owner.model_fields.items():
        branches = {tag: section for section in _section_types(field.annotation) for tag in _tags(section)}
        default = _tags(type(field.default))[0] if isinstance(field.default, Section) else None
        if not branches or not isinstance(content.get(name), dict):
            continue
        earlier = before.get(name) if isinstance(before.get(name), dict) else {}
        now = branches.get(_chosen(content[name]) or default)
        if now is None:
            if path and not any(keys[: len(path) + 1] == (*path, name) for keys in given):
                del content[name]
            continue
        was = branches.get(_chosen(earlier) or default, now)
        for key in was.model_fields.keys() - now.model_fields.keys():
            if (*path, name, key) not in given:
                content[name].pop(key, None)
        _leave_behind(now, earlier, content[name], given, (*path, name))


def _chosen(section: Any) -> str | None:
    """The `source` or `kind` that a section names."""
    return section.get("source", section.get("kind")) if isinstance(section, dict) else None


def _explain(problem: dict[str, Any]) -> str:
    """One line for one pydantic error: the key, what was found, what was expected, the neighbours of an unknown key."""
    owner, options, path = Recipe, [], []
    for part in problem["loc"]:
        tagged = [option for option in options if len(options) > 1 and part in _tags(option)]
        if tagged:  # the discriminator of a union stands in the location, but it is no key of the file
            options = tagged
            continue
        if options:
            owner = options[0]
        path.append(str(part))
        options = _section_types(owner.model_fields[part].annotation) if part in owner.model_fields else []
    key = ".".join(path)
    if not path:  # two sections that do not fit: the sentence names their keys
        return str(problem["ctx"]["error"])
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(path[-1], owner.model_fields, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"{key}: unknown key{hint} (known here: {', '.join(owner.model_fields)})"
    if problem["type"] == "missing":
        return f"{key}: this key is required"
    if problem["type"] in ("union_tag_not_found", "union_tag_invalid"):
        field = problem["ctx"]["discriminator"].strip("'")
        expected = ", ".join(tag for option in options for tag in _tags(option))
        return f"{key}.{field}: expected one of {expected}, found {problem['ctx'].get('tag', 'nothing')!r}"
    return f"{key}: {problem['msg'][0].lower()}{problem['msg'][1:]}, found {problem['input']!r}"


def _section_types(annotation: Any) -> list[type[Section]]:
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, Section) else []
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated):
        return [found for argument in typing.get_args(annotation) for found in _section_types(argument)]
    return []


def _tags(section: type[Section]) -> tuple[str | None, ...]:
    """The discriminator values (`source`, `kind`) of one branch of a union."""
    for name in ("source", "kind"):
        if name in section.model_fields:
            return typing.get_args(section.model_fields[name].annotation)
    return (None,)


def describe_keys() -> str:
    """All keys with default and meaning, for `--help`."""
    return "\n".join(_describe(Recipe, "--"))


def _describe(owner: type[Section], prefix: str) -> Iterator[str]:
    for name, entry in owner.model_fields.items():
        options = _section_types(entry.annotation)
        for option in options:
            kind = f" ({' | '.join(_tags(option))})" if len(options) > 1 else ""
            yield f"{prefix[2:]}{name}{kind}:"
            yield from ("  " + line for line in _describe(option, f"{prefix}{name}."))
        if not options:
            default = "required" if entry.is_required() else f"default {entry.default!r}"
            meaning = f": {entry.description}" if entry.description else ""
            yield f"{prefix}{name} ({default}){meaning}"
