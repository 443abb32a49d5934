"""A grid of runs (recipes x noise x seeds), and what is true of all seeds together. Its tables: `compare_tables.py`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from clip_itm.checksums import check_files
from clip_itm.evaluation.ranking import Ranks
from clip_itm.evaluation.recall import paired_difference_of_runs
from clip_itm.evaluation.report import columns_of
from clip_itm.evaluation.result import RetrievalResult
from clip_itm.reading import read_json
from clip_itm.recipe import Recipe, RecipeError, load_recipe
from clip_itm.weights import trains_only

TABLE = "comparison.json"
STAGES = {"best": "best checkpoint by val", "last": "last epoch"}


@dataclass(frozen=True)
class Cell:
    """One run of the grid: `method` names its recipe, `results` is what its `results.json` in `folder` holds."""

    method: str
    ratio: float
    seed: int
    results: dict
    folder: Path

    @property
    def level(self) -> str:
        """How captions were chosen (`noise.level`)."""
        return self.results["noise"]["level"]

    @property
    def noise(self) -> str:
        """The noise as tables name it."""
        return noise_label(self.level, self.ratio)


def noise_label(level: str, ratio: float) -> str:
    """`0`, `0.4` at level "caption", `image 0.4` at another one."""
    return f"{ratio:g}" if level == "caption" or ratio == 0 else f"{level} {ratio:g}"


def plan(
    files: Sequence[str], noises: Sequence[str | float], seeds: Sequence[int], out: Path, overrides: Sequence[str]
) -> list[tuple[str, Recipe]]:
    """The recipes of all runs, each with a folder of its own below `out`; validated before the first one starts.

    `noises`: ratios, at the level of the recipes (0.4), or with a level ("image:0.4").
    """
    names = method_names(files)
    runs = []
    for name, file in zip(names, files, strict=True):
        own = load_recipe(file, list(overrides)).noise.level
        for level, ratio in map(_setting, noises):
            other = [] if level in (None, own) or ratio == 0 else [str(level)]
            for seed in seeds:
                where = out / name / "-".join(["noise", *other, f"{ratio:g}"]) / f"seed-{seed}"
                keys = ["--noise.ratio", f"{ratio}", "--training.seed", f"{seed}", "--output_dir", str(where)]
                levels = [word for one in other for word in ("--noise.level", one)]
                runs.append((name, load_recipe(file, [*overrides, *keys, *levels])))
    folders = [recipe.output_dir for _, recipe in runs]
    if twice := [folder for folder in folders if folders.count(folder) > 1]:
        raise RecipeError(f"{twice[0]} would be two runs: name every noise and every seed once")
    cells = len(noises) * len(seeds)
    for number, (name, recipe) in enumerate(runs):
        _require_comparable(name, recipe, *runs[number % cells])
    return runs


def _setting(noise: str | float) -> tuple[str | None, float]:
    """Level (None: that of the recipe) and ratio."""
    level, _, ratio = str(noise).rpartition(":")
    try:
        return level or None, float(ratio)
    except ValueError:
        raise RecipeError(f"--noise {noise}: expected a ratio such as 0.4, or level:ratio such as image:0.4") from None


def _require_comparable(name: str, recipe: Recipe, first_name: str, first: Recipe) -> None:
    """Rows of one table share images, captions, noise draw and split."""
    if recipe.noise.file is not None:
        raise RecipeError(f"{name}: noise.file fixes the noise, and compare varies noise.ratio; leave noise.file out")
    sections: list[tuple[str, set[str]]] = [
        ("data", {"cache_dir", "cache_images", "num_workers", "random_crop"}),
        ("noise", set()),
    ]
    if recipe.noise.needs_neighbours and recipe.noise.model is None and not recipe.data.gives_regions:
        sections.append(("backbone", {key for key in type(recipe.backbone).model_fields if trains_only(key)}))
    for section, ignored in sections:
        one, other = (getattr(each, section).model_dump(exclude=ignored) for each in (first, recipe))
        keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
        if keys:
            advice = "; name a model by which photos are near (noise.model)" if section == "backbone" else ""
            raise RecipeError(
                f"{first_name} and {name} cannot share a table: {section}.{', '.join(keys)} differ{advice}"
            )
    if recipe.evaluation != first.evaluation:
        raise RecipeError(f"{first_name} and {name} cannot share a table: their evaluation sections differ")


def require_same_draw(cells: Sequence[Cell]) -> None:
    """ValueError if the captions of the last cell were drawn differently from others with its noise."""
    last = cells[-1]
    for cell in cells:
        hashes = [one.results["noise"]["sha256"][:12] for one in (cell, last)]
        if cell.noise == last.noise and hashes[0] != hashes[1]:
            raise ValueError(
                f"{cell.folder} and {last.folder} cannot share a table: their captions were drawn differently (noise "
                f"{hashes[0]} and {hashes[1]}); delete one of them, or name another folder (--out)"
            )


def require_comparison(out: Path) -> None:
    """ValueError if tables and pictures would replace files of a folder that no comparison wrote."""
    names = (TABLE, "comparison.md", "comparison.png", "queries.png")
    if (taken := [name for name in names if (out / name).exists()]) and not _is_comparison(out / TABLE):
        raise ValueError(
            f"--out {out} holds {', '.join(taken)} but no {TABLE} of clip-itm: move that away, or name another folder"
        )


def _is_comparison(table: Path) -> bool:
    try:
        return read_json(table, "a comparison").keys() >= {"rows", "runs"}
    except (OSError, ValueError):
        return False


def method_names(files: list[str]) -> list[str]:
    """`clip` for recipes/coco/clip.yaml; `coco-clip` if two files would have the same name."""
    paths = [Path(file) for file in files]
    names = [path.stem for path in paths]
    if len(set(names)) < len(names):
        names = [f"{path.parent.name}-{path.stem}" for path in paths]
    if len(set(names)) < len(names):
        raise RecipeError(f"two recipes are called the same: {', '.join(files)}; rename one, its name is its row")
    return names


def summarise(cells: Sequence[Cell]) -> list[dict]:
    """A row per protocol, method, noise and stage: mean and sample standard deviation over seeds, in percent."""
    groups: dict[tuple, list[dict]] = {}
    for cell in cells:
        for stage in ("zero_shot", *STAGES):
            for protocol, result in cell.results[stage].items():
                key = (protocol, cell.method, cell.level, cell.ratio, stage)
                groups.setdefault(key, []).append(result["metrics"])
    rows = []
    for (protocol, method, level, ratio, stage), metrics in groups.items():
        row = {"protocol": protocol, "method": method, "noise": ratio, "level": level, "stage": stage}
        row["seeds"] = len(metrics)
        for name in columns_of(metrics):
            values = [metrics_row[name] for metrics_row in metrics]
            row[name], row[f"{name}_std"] = mean(values), stdev(values) if len(values) > 1 else 0.0
        rows.append(row)
    return rows


def add_differences(rows: list[dict], cells: Sequence[Cell]) -> None:
    """Adds "rsum_difference" (value, low, high) to the rows of every method but the first: paired bootstrap against it.

    The interval is over test images, with the same resamples for both; differences are averaged over seeds. Rows
    without an rsum (protocol eccv) get none.
    """
    first = cells[0].method
    for row in rows:
        if row["method"] == first or row["stage"] not in STAGES or "rsum" not in row:
            continue
        runs = {
            name: [
                _ranks(cell.folder, f"ranks_{row['stage']}/{row['protocol']}.npz")
                for cell in cells
                if (cell.method, cell.level, cell.ratio) == (name, row["level"], row["noise"])
            ]
            for name in (first, row["method"])
        }
        row["rsum_difference"] = list(paired_difference_of_runs(*runs.values())["rsum"])


def _ranks(run: Path, name: str) -> tuple[Ranks, ...]:
    check_files(run, (name,))
    return RetrievalResult.load(run / name).folds
