"""Data that a model is to judge: a folder, a recipe or a data set of the Hub. Nothing here loads torch."""

from pathlib import Path
from typing import Any, NamedTuple

from clip_itm.data.recognised import recognised
from clip_itm.offline import looks_like_path, require_source
from clip_itm.recipe import Recipe, apply_overrides, load_recipe, parse_recipe

HUB = "hub:"
EXPECTED = (
    "expected a folder of photos and captions (a table, a text beside each photo, tars, Parquet files), a recipe, or "
    "hub:NAME for a data set of the Hub"
)
NO_TOWERS = {"kind": "open_clip", "model": "ViT-B-32"}  # a recipe has to name some; another model judges


class DataToAudit(NamedTuple):
    """A recipe (only its data, noise, precision and batch size count), a title, and a sentence on what was found."""

    recipe: Recipe
    title: str
    sentence: str = ""


def data_to_audit(data: str | Path | dict[str, Any], overrides: list[str] | tuple[str, ...] = ()) -> DataToAudit:
    """What `data` names: a folder, tars or Parquet files, a recipe file, the folder of a run (its recipe), or
    "hub:NAME"; or the keys of a data section. Raises ValueError for anything else, and for unknown keys."""
    sentence = ""
    if isinstance(data, str | Path):
        title, folder = str(data), Path(data).expanduser()
        found = None if title.startswith(HUB) or (folder / "recipe.yaml").is_file() else recognised(data)
        if found is not None:
            section, sentence = dict(found.section), found.sentence
        elif (folder.is_file() or (folder / "recipe.yaml").is_file()) and not title.startswith(HUB):
            return DataToAudit(load_recipe(folder, overrides), title)
        else:
            section = _section(title)
    else:
        title, section = "the given data", dict(data)
    content = apply_overrides({"data": section, "backbone": NO_TOWERS}, list(overrides))
    return DataToAudit(parse_recipe(content, title), title, sentence)


def _section(name: str) -> dict[str, str]:
    if name.startswith(HUB):
        return {"source": "hub", "path": name.removeprefix(HUB)}
    advice = "" if looks_like_path(name) or name.endswith((".yaml", ".yml")) else f" (of the Hub: {HUB}{name})"
    raise ValueError(f"{name}: there is no such folder or recipe{advice}; {EXPECTED}")


def require_judge(model: str) -> None:
    """ValueError at once for a model that `load_model` cannot find: no such folder, or a name that the Hub lacks."""
    if Path(model).expanduser().exists() or ":" in model:
        return
    if "/" not in model:
        raise ValueError(
            f"--model {model}: there is no such folder; expected a run, a model folder, a name on the Hub, or "
            "MODEL:TAG of open_clip such as ViT-B-32-quickgelu:openai"
        )
    require_source(model)
