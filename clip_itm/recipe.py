"""The typed recipe: one YAML file, overrides on the command line, errors that name the key and its neighbours.

Nothing here imports torch, so that a typing mistake is reported at once.
"""

import difflib
import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, create_model, field_validator, model_validator

from clip_itm.backbones.configuration import BackboneConfig
from clip_itm.checksums import check_files
from clip_itm.data.configuration import DataConfig, NoiseSection
from clip_itm.evaluation.configuration import EvaluationSection
from clip_itm.key_list import as_text, list_keys
from clip_itm.keys import section_types, tags
from clip_itm.methods.clip.configuration import ClipHeadConfig
from clip_itm.methods.configuration import HeadConfig
from clip_itm.overrides import merge_overrides
from clip_itm.renamed import RENAMED, with_new_names, with_old_names
from clip_itm.section import RecipeError, Section
from clip_itm.training.configuration import TrainingSection
from clip_itm.yaml_text import read_yaml, write_yaml

LARGEST_FILE = 2**20  # bytes
LONGEST_SHOWN = 300  # characters of a wrong value


class Recipe(Section):
    """Everything that one run depends on."""

    output_dir: str = Field(
        "runs/run", min_length=1, description="folder of the run: checkpoints, tables, saved recipe and noise"
    )
    data: DataConfig
    noise: NoiseSection = NoiseSection()
    backbone: BackboneConfig
    start_from: str | None = Field(
        None,
        min_length=1,
        description="a run, a model folder or a name on the Hub, with towers like those of backbone: training starts "
        "from its weights (and those of its head, if of the same kind), not from pretrained ones",
    )
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
        regions = self.data.gives_regions
        if regions != self.backbone.reads_regions:
            raise ValueError(
                f"data.source {self.data.source} and backbone.kind {self.backbone.kind} do not fit: precomputed "
                "regions are read by backbone.kind regions, and by it alone"
            )
        if regions and self.training.guard is not None and self.training.guard.classes is not None:
            raise ValueError("training.guard.classes: a model that reads regions sees no photos; watch another metric")
        if regions and self.data.global_vectors != (self.backbone.global_dim is not None):
            raise ValueError(
                "backbone.global_dim is the width of the vectors that data.global_vectors: true brings along: set "
                "both, or neither"
            )
        return self

    @property
    def sha256(self) -> str:
        """Hash of what decides the outcome: folders, loader processes, logging and evaluation batches are left out.

        So is data.skip_broken: what it leaves out does decide, but is in the hashes of the splits.
        """
        content = self.model_dump(mode="json")
        del content["output_dir"], content["training"]["trackers"], content["training"]["log_every"]
        del content["evaluation"]["batch_size"]
        if content["start_from"] is None:  # keys that came later: without them, a recipe has the hash it had before
            del content["start_from"]
        if content["training"]["early_stopping_patience"] is None:
            del content["training"]["early_stopping_patience"], content["training"]["early_stopping_threshold"]
        # `later_keys` of a section: those that came after the first version of its method
        of_head = {*getattr(self.head, "later_keys", ()), "same_caption"} & type(self.head).model_fields.keys()
        later = {"noise": ("neighbours", "model"), "head": of_head, "evaluation": ("same_caption",)}
        later["training"] = ("ema", "guard", "unique_captions", "accumulate", "cache_chunk", "compile")
        later["backbone"] = {"context_length", "max_num_patches"} & type(self.backbone).model_fields.keys()
        for name, keys in later.items():
            section = getattr(self, name)
            for key in keys:
                if getattr(section, key) == type(section).model_fields[key].default:
                    del content[name][key]
        if content["data"]["marks"] is None:
            del content["data"]["marks"]
        for key in ("cache_dir", "num_workers", "skip_broken"):
            content["data"].pop(key)
        for name in RENAMED:
            content[name] = with_old_names(name, content[name])
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def base_models(self) -> list[str]:
        """The weights that training starts from: names on the Hub, paths, or names such as timm:NAME."""
        return self.backbone.base_models if self.start_from is None else [self.start_from]

    @property
    def random_part(self) -> str | None:
        """What has random weights before training, as far as the recipe says; None if all is trained already."""
        return self.backbone.random_part if self.start_from is None else None

    def with_overrides(self, *overrides: str) -> "Recipe":
        """A copy with `--section.key value` overrides applied."""
        return parse_recipe(apply_overrides(self.model_dump(mode="json"), list(overrides)), "recipe")

    def to_yaml(self) -> str:
        return write_yaml(self.model_dump(mode="json"))


def load_recipe(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """The recipe of the YAML file `path` (or of the run folder that holds one), with `--section.key value` overrides.

    Paths in a recipe are relative to the current folder. Raises `RecipeError` for a missing or broken file, unknown
    keys and wrong types.

    >>> load_recipe("recipes/sample/clip.yaml", ["--training.epochs", "2"])
    """
    path, is_saved = Path(path), False
    if path.is_dir():
        if not (path / "recipe.yaml").is_file():
            raise RecipeError(
                f"{path}: no recipe.yaml in this folder, so it is no run; expected a run or a recipe file"
            )
        check_files(path, ("recipe.yaml",))
        path, is_saved = path / "recipe.yaml", True
    content = read_yaml(_text_of(path), str(path), [Recipe])
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: a recipe is a mapping with the sections {', '.join(Recipe.model_fields)}")
    if is_saved:
        content = {
            name: with_new_names(name, section) if isinstance(section, dict) else section
            for name, section in content.items()
        }
    return parse_recipe(apply_overrides(content, list(overrides)), str(path))


def parse_recipe(content: dict[str, Any], origin: str) -> Recipe:
    """Validate a nested mapping; `origin` names it in errors. Raises `RecipeError` with a line per wrong key."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        lines = [f"{origin}: {_explain(problem)}" for problem in error.errors()]
        raise RecipeError("\n".join(lines)) from None


def parse_section(key: str, content: Any, origin: str) -> Section:
    """One section of a recipe, such as "backbone"; errors are those of `parse_recipe`."""
    field = Recipe.model_fields[key]
    alone = create_model("Alone", __base__=Section, **{key: (field.annotation, field)})
    try:
        return getattr(alone.model_validate({key: content}), key)
    except ValidationError as error:
        raise RecipeError("\n".join(f"{origin}: {_explain(problem)}" for problem in error.errors())) from None


def apply_overrides(content: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """A nested mapping with `--a.b value` / `--a.b=value` pairs merged into it; see `merge_overrides`."""
    return merge_overrides(Recipe, content, overrides)


def _text_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except ValueError as error:  # a name that no file can have
        raise RecipeError(f"{str(path)!r}: cannot read the recipe ({error})") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot read the recipe ({error.strerror}); shipped ones are in recipes/") from None
    if len(data) > LARGEST_FILE:
        raise RecipeError(f"{path}: larger than {LARGEST_FILE:,} bytes, so it is no recipe")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise RecipeError(
            f"{path}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8; save it as UTF-8"
        ) from None


def _explain(problem: dict[str, Any]) -> str:
    """One line for one pydantic error: the key, what was found, what was expected, the neighbours of an unknown key."""
    owner, options, path = Recipe, [], []
    for part in problem["loc"]:
        tagged = [option for option in options if len(options) > 1 and part in tags(option)]
        if tagged:  # the discriminator of a union is in the location, but is not a key of the file
            options = tagged
            continue
        if options:
            owner = options[0]
        path.append(str(part))
        options = section_types(owner.model_fields[part].annotation) if part in owner.model_fields else []
    key = ".".join(path)
    if not path:  # two sections that do not fit: the sentence names their keys
        return str(problem["ctx"]["error"])
    if problem["type"] == "extra_forbidden" and (new := RENAMED.get(path[0], {}).get(path[-1])) in owner.model_fields:
        return f"{key}: this key is called {path[0]}.{new} now"
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(path[-1], owner.model_fields, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"{key}: unknown key{hint} (known here: {', '.join(owner.model_fields)})"
    if problem["type"] == "missing" and key == "data":
        return (
            "data: this section is required; it says where photos and captions are, such as data: {source: folder, "
            "root: PHOTOS} (docs/data.md has all sources; {source: sample} draws scenes)"
        )
    if problem["type"] == "missing":
        return f"{key}: this key is required"
    if problem["type"] in ("union_tag_not_found", "union_tag_invalid"):
        field = problem["ctx"]["discriminator"].strip("'")
        expected = ", ".join(tag for option in options for tag in tags(option))
        return f"{key}.{field}: expected one of {expected}, found {problem['ctx'].get('tag', 'nothing')!r}"
    said = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error" and isinstance(problem["input"], dict):  # keys of a section that do not fit
        return f"{key}: {said}"
    return f"{key}: {said[0].lower()}{said[1:]}, found {_shown(problem['input'])}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 20]} ... ({len(text):,} characters)"


def describe_keys() -> str:
    """All keys with what they take, default and meaning, for `--help`."""
    return as_text(list_keys(Recipe))
