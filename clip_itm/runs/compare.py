"""A grid of runs (recipes x noise ratios x seeds) and the table of a paper over it."""

from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from clip_itm.checksums import check_files
from clip_itm.evaluation.ranking import Ranks
from clip_itm.evaluation.recall import paired_difference_of_runs
from clip_itm.evaluation.report import HEADERS, columns_of
from clip_itm.evaluation.result import RetrievalResult
from clip_itm.files import write_json, write_text
from clip_itm.reading import read_json
from clip_itm.recipe import Recipe, RecipeError, load_recipe
from clip_itm.visible import markdown as plain

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


def plan(
    files: list[str], ratios: list[float], seeds: list[int], out: Path, overrides: list[str]
) -> list[tuple[str, Recipe]]:
    """The recipes of all runs, each with a folder of its own below `out`; validated before the first one starts."""
    names = method_names(files)
    runs = []
    for name, file in zip(names, files, strict=True):
        for ratio in ratios:
            for seed in seeds:
                where = out / name / f"noise-{ratio:g}" / f"seed-{seed}"
                keys = ["--noise.ratio", f"{ratio}", "--training.seed", f"{seed}", "--output_dir", str(where)]
                runs.append((name, load_recipe(file, [*overrides, *keys])))
    for name, recipe in runs:
        _require_comparable(name, recipe, *runs[0])
    return runs


def _require_comparable(name: str, recipe: Recipe, first_name: str, first: Recipe) -> None:
    """Rows of one table stand on the same images, captions, noise draw and split."""
    if recipe.noise.file is not None:
        raise RecipeError(f"{name}: noise.file fixes the noise, and compare varies noise.ratio; leave noise.file out")
    for section, ignored in (
        ("data", {"cache_dir", "cache_images", "num_workers", "random_crop"}),
        ("noise", {"ratio"}),
    ):
        one, other = (getattr(each, section).model_dump(exclude=ignored) for each in (first, recipe))
        keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
        if keys:
            raise RecipeError(f"{first_name} and {name} cannot share a table: {section}.{', '.join(keys)} differ")
    if recipe.evaluation != first.evaluation:
        raise RecipeError(f"{first_name} and {name} cannot share a table: their evaluation sections differ")


def require_comparison(out: Path) -> None:
    """ValueError where tables and pictures would replace files of a folder that no comparison wrote."""
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
    """`clip` for recipes/coco/clip.yaml; `coco-clip` where two files would be called the same."""
    paths = [Path(file) for file in files]
    names = [path.stem for path in paths]
    if len(set(names)) < len(names):
        names = [f"{path.parent.name}-{path.stem}" for path in paths]
    if len(set(names)) < len(names):
        raise RecipeError(f"two recipes are called the same: {', '.join(files)}; rename one, its name is its row")
    return names


def summarise(cells: list[Cell]) -> list[dict]:
    """A row per protocol, method, noise ratio and stage: mean and sample standard deviation over seeds, in percent."""
    groups: dict[tuple, list[dict]] = {}
    for cell in cells:
        for stage in ("zero_shot", *STAGES):
            for protocol, result in cell.results[stage].items():
                groups.setdefault((protocol, cell.method, cell.ratio, stage), []).append(result["metrics"])
    rows = []
    for (protocol, method, ratio, stage), metrics in groups.items():
        row = {"protocol": protocol, "method": method, "noise": ratio, "stage": stage, "seeds": len(metrics)}
        for name in columns_of(metrics):
            values = [metrics_row[name] for metrics_row in metrics]
            row[name], row[f"{name}_std"] = mean(values), stdev(values) if len(values) > 1 else 0.0
        rows.append(row)
    return rows


def add_differences(rows: list[dict], cells: list[Cell]) -> None:
    """Adds "rsum_difference" (value, low, high) to the rows of every method but the first: paired bootstrap against it.

    The interval is over test images, drawn the same for both; the differences of all seeds are averaged. Rows without
    an rsum (protocol eccv) get none.
    """
    first = cells[0].method
    for row in rows:
        if row["method"] == first or row["stage"] not in STAGES or "rsum" not in row:
            continue
        runs = {
            name: [
                _ranks(cell.folder, f"ranks_{row['stage']}/{row['protocol']}.npz")
                for cell in cells
                if (cell.method, cell.ratio) == (name, row["noise"])
            ]
            for name in (first, row["method"])
        }
        row["rsum_difference"] = list(paired_difference_of_runs(*runs.values())["rsum"])


def _ranks(run: Path, name: str) -> tuple[Ranks, ...]:
    check_files(run, (name,))
    return RetrievalResult.load(run / name).folds


def table_lines(rows: list[dict], stage: str) -> list[list[str]]:
    """Cells of one stage's table, `12.3 ± 0.4` where there are several seeds; the header first."""
    rows = sorted((row for row in rows if row["stage"] == stage), key=lambda row: row["noise"])
    columns = columns_of(rows)
    lines = [["noise", "method", *(HEADERS[name] for name in columns), "seeds"]]
    compared = any("rsum_difference" in row for row in rows)
    if compared:
        lines[0].append(f"rsum against {rows[0]['method']} [95 %]")
    for row in rows:
        metrics_row = [
            f"{row[name]:.1f}" + (f" ± {row[f'{name}_std']:.1f}" if row["seeds"] > 1 else "") for name in columns
        ]
        lines.append([f"{row['noise']:g}", row["method"], *metrics_row, str(row["seeds"])])
        if compared:
            difference = row.get("rsum_difference")
            lines[-1].append("{:+.1f} [{:+.1f}, {:+.1f}]".format(*difference) if difference else "")
    return lines


def detection_lines(cells: list[Cell]) -> list[list[str]]:
    """How well each method tells its wrong training pairs, where it estimates that while it trains; header first."""
    lines = [["noise", "method", "AUC", "precision", "seeds"]]
    groups: dict[tuple, list[dict]] = {}
    for cell in cells:
        if found := cell.results.get("wrong_pairs"):
            groups.setdefault((cell.ratio, cell.method), []).append(found)
    for (ratio, method), found in sorted(groups.items(), key=lambda entry: entry[0][0]):
        values = {name: [each[name] for each in found if each[name] is not None] for name in ("auc", "precision")}
        metrics_row = [f"{mean(each):.3f}" if each else "-" for each in values.values()]
        lines.append([f"{ratio:g}", method, *metrics_row, str(len(found))])
    return lines


def markdown(rows: list[dict], cells: list[Cell]) -> str:
    """The whole comparison as Markdown: a table per protocol and stage, and what it rests on."""
    first = cells[0].results
    parts = [f"# Recall on {first['split']}, percent (mean ± sample standard deviation over training seeds)\n"]
    for protocol in dict.fromkeys(row["protocol"] for row in rows):
        own = [row for row in rows if row["protocol"] == protocol]
        for stage, label in {**STAGES, "zero_shot": "step 0 (zero-shot)"}.items():
            parts.append(f"## {protocol}, {label}\n")
            parts.append(_markdown_lines(table_lines(own, stage)))
    if len(lines := detection_lines(cells)) > 1:
        parts.append("## wrong training pairs found (precision among as many suspects as pairs are wrong)\n")
        parts.append(_markdown_lines(lines))
    noise = {f"{cell.ratio:g}": cell.results["noise"]["sha256"][:12] for cell in cells}
    machine = first["provenance"]["machine"]
    parts.append(
        f"One noise draw per ratio ({', '.join(f'{ratio}: {sha}' for ratio, sha in noise.items())}), shared by all "
        f"methods and seeds. {machine['processes']} process(es) on {machine['device']}, "
        f"torch {first['provenance']['versions']['torch']}.\n"
    )
    return "\n".join(parts)


def _markdown_lines(lines: list[list[str]]) -> str:
    header, *rows = [[plain(cell) for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in (header, ["---"] * len(header), *rows))


def save(rows: list[dict], cells: list[Cell], out: Path) -> None:
    """`comparison.md` and `comparison.json` in `out`."""
    runs = [{"method": cell.method, "noise": cell.ratio, "seed": cell.seed, **cell.results} for cell in cells]
    write_json(out / TABLE, {"rows": rows, "runs": runs})
    write_text(out / "comparison.md", markdown(rows, cells))
