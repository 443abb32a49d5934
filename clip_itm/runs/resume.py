"""What a folder holds when a run is to begin in it: the same run, finished or not, another one, or leftovers."""

from pathlib import Path

from clip_itm.checksums import CHECKSUMS, check_files
from clip_itm.data.load import load_splits
from clip_itm.data.marked_training import with_marks
from clip_itm.data.noise import CaptionNoise
from clip_itm.data.rows import Split
from clip_itm.data.training_data import TrainingData
from clip_itm.distributed import by_first, say
from clip_itm.files import write_json
from clip_itm.methods.method import method_of
from clip_itm.reading import read_json
from clip_itm.recipe import Recipe, load_recipe
from clip_itm.runs.additions import NOTHING, Additions
from clip_itm.runs.card import CURVES
from clip_itm.runs.provenance import Provenance, describe_run
from clip_itm.runs.setup import noise_of, require_splits
from clip_itm.runs.start import start_folder
from clip_itm.runs.stored import read_provenance, read_results
from clip_itm.training.checkpoints import (
    checkpoints,
    clear_half_written,
    holds_work,
    is_complete,
    last_complete_checkpoint,
    prepared,
)
from clip_itm.training.folder import (
    FIRST,
    MANIFEST,
    PREPARED,
    RESULTS,
    SKIPPED,
    STATE,
    delete,
    own_files,
    record,
    record_added,
    seal_run,
)
from clip_itm.training.stored import require_trainer_state


def finished(recipe: Recipe, folder: Path, additions: Additions = NOTHING) -> dict | None:
    """The results of a finished run of this recipe, or None when there is work to do.

    ValueError for a run of another recipe, unless it left nothing that would be lost: a start that failed is no run.
    """
    if holds_work(folder):
        _require_name(folder)
    if not (folder / "recipe.yaml").is_file():
        return None
    check_files(folder, ("recipe.yaml", "provenance.json"))
    found = load_recipe(folder)
    if found.sha256 != recipe.sha256 and (holds_work(folder) or "recipe.yaml" not in own_files(folder)):
        raise ValueError(
            f"{folder} holds a run of another recipe (different: {', '.join(_differences(found, recipe))}); "
            "choose another folder, or delete that run (`clip-itm train --overwrite`)"
        )
    if found.sha256 != recipe.sha256 or not (folder / RESULTS).is_file():
        return None
    check_files(folder, (RESULTS,))
    by_first(lambda: additions.require_same(folder))
    try:
        splits = load_splits(recipe.data, verify=False)
        if recipe.start_from is not None:
            start_folder(recipe.start_from)
    except (OSError, ValueError) as error:  # results stay valid when their data are gone
        say(f"{folder}: whether its data are still the same cannot be checked: {error}")
        return read_results(folder / RESULTS)
    require_splits(recipe, splits)
    kept = recipe.noise.needs_neighbours  # no photo is encoded again just to look at results
    noise = CaptionNoise.load(folder / "noise.npz") if kept else noise_of(recipe, splits)
    splits, noise = with_marks(splits, noise, recipe.data.marks)
    method = method_of(recipe.head)
    method.open(noise, splits["train"].pairs)
    _require_unchanged(folder, describe_run(recipe, splits, noise, method.provenance))
    return read_results(folder / RESULTS)


def last_own_checkpoint(recipe: Recipe, folder: Path, provenance: Provenance) -> Path | None:
    """The checkpoint to resume from. ValueError naming one that is not of this run, or that has vanished."""
    complete = [path for path in checkpoints(folder) if is_complete(path)]
    if not complete:
        return None
    last, there = complete[-1], {path.name for path in complete}
    _require_whole(folder, complete)
    require_trainer_state(complete[-1])
    _require_unchanged(folder, provenance)
    for path in complete:
        try:
            found, began = load_recipe(path), read_provenance(path / "provenance.json")
            different = [] if found.sha256 == recipe.sha256 else _differences(found, recipe)
            different += provenance.changes_since(began)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            different = [f"it does not say of which: {error}"]
        if different:
            raise ValueError(
                f"{path} is a checkpoint of another run ({', '.join(different)}), and this one cannot go on from it: "
                "move it away, or choose another output_dir"
            )
    best = _best_step(last)
    if best is not None and f"checkpoint-{best}" not in there:
        raise ValueError(
            f"{folder / f'checkpoint-{best}'}, the best one so far, is gone: put it back, or start anew (--overwrite)"
        )
    return last


def began_here(recipe: Recipe, folder: Path, provenance: Provenance) -> bool:
    """Whether what is prepared in the folder is of this run. ValueError if its data have changed since."""
    if not prepared(folder) or not (folder / "recipe.yaml").is_file() or load_recipe(folder).sha256 != recipe.sha256:
        return False
    _require_unchanged(folder, provenance)
    return True


def begin(
    recipe: Recipe,
    folder: Path,
    provenance: Provenance,
    data: TrainingData,
    checkpoint: Path | None,
    goes_on: bool = False,
) -> None:
    """Make the folder this run's; what an earlier one left is deleted only now, so that a failed start does no harm.

    `goes_on`: what is prepared for this run stays, though it has no checkpoint yet.
    """
    if checkpoint is None:
        _clear(recipe, folder, set(prepared(folder)) if goes_on else set())
    (folder / CHECKSUMS).unlink(missing_ok=True)  # no checksums of what is about to be replaced
    clear_half_written(folder)
    ranks = [f"ranks_{stage}/{name}.npz" for stage in ("best", "last") for name in recipe.evaluation.protocols]
    record(folder, [*FIRST, *ranks, "best/README.md", f"best/{CURVES}"])
    provenance.write(folder, recipe)
    data.noise.save(folder / "noise.npz")
    write_skipped(folder / SKIPPED, data.splits)
    seal_run(folder)


def require_other_start(recipe: Recipe, folder: Path) -> None:
    """ValueError if a run would replace the model that it starts from."""
    if recipe.start_from is not None and Path(recipe.start_from).exists():
        place, run = Path(recipe.start_from).resolve(), folder.resolve()
        if place == run or (place.is_relative_to(run) and place.relative_to(run).parts[0] != "start"):
            raise ValueError(
                f"start_from: {recipe.start_from} is in the folder of this run, which would replace it: choose another "
                "output_dir"
            )


def _clear(recipe: Recipe, folder: Path, kept: set[str]) -> None:
    """Delete what an earlier run left, except `kept` and what the new one reads there: data and model from Python."""
    places = [Path(place).resolve() for place in (recipe.data.hub_dataset, recipe.start_from) if place is not None]
    own = own_files(folder)
    read = kept | {name for name in own if any((folder / name).resolve().is_relative_to(place) for place in places)}
    if read:
        delete(folder, own - read - {MANIFEST})
    else:
        delete(folder)


def _require_whole(run: Path, complete: list[Path]) -> None:
    """ValueError if the files to resume from are not as they were written; the first process reads all of them."""
    last, anew = complete[-1], "start anew with --overwrite"
    earlier = f"delete {last} to go on from {complete[-2].name}" if complete[1:] else anew

    def check(folder: Path, names: tuple[str, ...] | None, remedy: str) -> None:
        try:
            check_files(folder, names)
        except ValueError as error:
            raise ValueError(f"{error}. Or {remedy}") from None

    def check_all() -> None:
        check(run, ("recipe.yaml", "provenance.json", "noise.npz"), anew)
        check(last, None, earlier)
        check(run / f"checkpoint-{_best_step(last)}", None, anew)

    by_first(check_all)


def _best_step(checkpoint: Path) -> int | None:
    return read_json(checkpoint / STATE, "the state of a trainer").get("best_global_step")


def _require_name(folder: Path) -> None:
    """ValueError if nothing says which run is in a folder."""
    last = last_complete_checkpoint(folder)
    what, copy = (RESULTS, folder / "best") if last is None else (last.name, last)
    if last is None and not (folder / RESULTS).is_file():
        what = PREPARED
    for name in ("recipe.yaml", "provenance.json"):
        if not (folder / name).is_file():
            remedy = f"put {copy / name} there if it is this one" if (copy / name).is_file() else f"move {what} away"
            raise ValueError(
                f"{folder} holds {what}, but no {name} that says which run it is of: {remedy}, or choose another "
                "output_dir"
            )


def _differences(first: Recipe, second: Recipe) -> list[str]:
    one, other = first.model_dump(mode="json"), second.model_dump(mode="json")
    keys = []
    for section in one:
        if isinstance(one[section], dict):
            names = {**one[section], **other[section]}
            keys += [f"{section}.{key}" for key in names if one[section].get(key) != other[section].get(key)]
        elif section != "output_dir" and one[section] != other[section]:
            keys.append(section)
    return keys


def _require_unchanged(folder: Path, provenance: Provenance) -> None:
    """A run resumes, and its results count, only with the images, captions and method files that it began with."""
    if not (folder / "provenance.json").is_file():
        return
    began = read_provenance(folder / "provenance.json")
    if changed := provenance.changes_since(began):
        raise ValueError(
            f"{folder}: the data have changed since this run began ({', '.join(changed)}); restore them, choose "
            "another output_dir, or start anew with --overwrite"
        )


def write_skipped(path: Path, splits: dict[str, Split]) -> None:
    """Write what the splits leave out, image by image and caption by caption; no file if that is nothing."""
    if any(split.skipped for split in splits.values()):
        record_added(path.parent, path.name)
        write_json(path, {name: [out._asdict() for out in split.skipped] for name, split in splits.items()})
