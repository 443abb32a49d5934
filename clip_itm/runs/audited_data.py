"""Data that a model is to judge: a folder, a recipe or a data set of the Hub. Nothing here loads torch."""

from pathlib import Path
from typing import Any, NamedTuple

from clip_itm.offline import looks_like_path, require_source
from clip_itm.recipe import Recipe, apply_overrides, load_recipe, parse_recipe

HUB = "hub:"
EXPECTED = "expected a folder of photos with a table of captions, a recipe, or hub:NAME for a data set of the Hub"
NO_TOWERS = {"kind": "open_clip", "model": "ViT-B-32"}  # that a recipe has to name: another model judges


class DataToAudit(NamedTuple):
    """A recipe, of which data, noise, precision and size of batches count, and what to call it."""

    recipe: Recipe
    title: str


def data_to_audit(data: str | Path | dict[str, Any], overrides: list[str] | tuple[str, ...] = ()) -> DataToAudit:
    """What `data` names: a folder, a recipe's file, the folder of a run (its recipe), "hub:NAME", or the keys of a data
    section. Raises ValueError for anything else, and for unknown keys."""
    if isinstance(data, str | Path):
        title, folder = str(data), Path(data).expanduser()
        is_recipe = folder.is_file() or (folder / "recipe.yaml").is_file()
        if is_recipe and not title.startswith(HUB):
            return DataToAudit(load_recipe(folder, overrides), title)
        section = _section(title, folder)
    else:
        title, section = "the given data", dict(data)
    content = apply_overrides({"data": section, "backbone": NO_TOWERS}, list(overrides))
    return DataToAudit(parse_recipe(content, title), title)


def _section(name: str, folder: Path) -> dict[str, str]:
    if name.startswith(HUB):
        return {"source": "hub", "path": name.removeprefix(HUB)}
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return {"source": "hub", "path": str(folder)}
    if folder.is_dir():
        return {"source": "folder", "root": str(folder)}
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
