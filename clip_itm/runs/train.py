"""One run from recipe to table: start, resume or recognise it as finished, train, evaluate, write everything down."""

import json
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from clip_itm.data.images import UnreadableImageError
from clip_itm.data.noise import level_in_words
from clip_itm.data.rows import Split
from clip_itm.data.training_data import TrainingData
from clip_itm.distributed import by_first, process_state, say
from clip_itm.evaluation.protocol import Result
from clip_itm.files import write_json, write_text
from clip_itm.model import ItmModel
from clip_itm.recipe import Recipe
from clip_itm.runs.additions import NOTHING, Additions
from clip_itm.runs.batch_checks import require_chunks_for_batch_norm, require_rows_for_batch_norm
from clip_itm.runs.build import make_trainer
from clip_itm.runs.card import CURVES, model_card
from clip_itm.runs.curves import draw_curves
from clip_itm.runs.ensemble import evaluate_encoders
from clip_itm.runs.launch import parts_weights, recipe_decides
from clip_itm.runs.resume import began_here, begin, finished, last_own_checkpoint, require_other_start
from clip_itm.runs.setup import final_split, make_encoder, make_model, prepare
from clip_itm.runs.stored import read_provenance
from clip_itm.training.clean_probability import FILE as CLEAN_PROBABILITY
from clip_itm.training.clean_probability import share_found, wrong_pairs_found
from clip_itm.training.encoder import Encoder
from clip_itm.training.folder import RESULTS, SKIPPED, failed_write, held, record_added, require_room, seal_run, staged
from clip_itm.training.sharding import whole
from clip_itm.training.trainer import PairTrainer
from clip_itm.visible import counted


def train(recipe: Recipe, *others, overwrite: bool = False) -> dict:
    """Run `recipe` in `recipe.output_dir` and return what `results.json` holds.

    A finished run of the same recipe is not repeated; an unfinished one is resumed from its last complete checkpoint.
    `overwrite` deletes what a run wrote there, once the new one can begin. Raises ValueError for a folder that holds
    another run or is being written, and for whatever is wrong with recipe or data; TypeError for other arguments. In
    the results, "zero_shot", "best" and "last" map each protocol to its figures on the split named by "split".

    >>> train(load_recipe("recipes/sample/clip.yaml"))["best"]["all"]["metrics"]["rsum"]
    """
    if others or not isinstance(recipe, Recipe) or not isinstance(overwrite, bool):
        raise TypeError(
            "expected train(recipe) or train(recipe, overwrite=True) with a Recipe, such as "
            "clip_itm.load_recipe('recipe.yaml'); data are named in the recipe's data section"
        )
    return run(recipe, overwrite)


def run(recipe: Recipe, overwrite: bool = False, additions: Additions = NOTHING) -> dict:
    """`train`, with what a run gets from Python besides its recipe."""
    disable_progress_bar()  # of loading and saving weights; training and encoding have their own
    folder = Path(recipe.output_dir)
    shards = parts_weights(recipe)
    with recipe_decides(recipe):
        results = None if overwrite else finished(recipe, folder, additions)
        if results is None:
            with held(folder, "train"):
                results = None if overwrite else finished(recipe, folder, additions)  # by another process, just now
                if results is None:
                    return _run(recipe, folder, overwrite, additions, shards)
    say(f"{folder}: this run is finished; here are its results (--overwrite repeats it)")
    if process_state().is_main_process and not (folder / "best" / "README.md").is_file():
        _show(recipe, folder, results)
    return results


def _run(recipe: Recipe, folder: Path, overwrite: bool, additions: Additions, shards: bool) -> dict:
    require_room(folder, anew=overwrite)
    require_other_start(recipe, folder)
    by_first(lambda: additions.keep(folder, overwrite))
    data, sampler, method, provenance = prepare(recipe, additions)
    checkpoint = None if overwrite else last_own_checkpoint(recipe, folder, provenance)
    goes_on = not overwrite and by_first(lambda: began_here(recipe, folder, provenance))
    say(_summary(recipe, data, len(sampler)))
    model, processor = make_model(recipe, data.splits)
    encoder = make_encoder(recipe, model, processor, data.image_cache)
    final = final_split(recipe, data.splits)
    require_rows_for_batch_norm(recipe, model, sampler)
    require_chunks_for_batch_norm(recipe, model, sampler)
    resuming = checkpoint is not None
    trainer = make_trainer(recipe, data, sampler, method, provenance, encoder, resuming, additions, shards)
    by_first(lambda: begin(recipe, folder, provenance, data, checkpoint, bool(goes_on)))

    results = {
        "recipe_sha256": recipe.sha256,
        "split": final.name,
        "noise": provenance.noise,
        "seed": recipe.training.seed,
        "zero_shot": evaluate_split(recipe, final, encoder),
    }
    if checkpoint is not None:
        say(f"resuming from {checkpoint}")
        trainer.load_method_state(checkpoint)
    began = time.perf_counter()
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except UnreadableImageError as error:
        raise ValueError(
            f"{error}. It could be read when this run began: put it back and give the same command again, which goes "
            "on from the last checkpoint"
        ) from error
    seconds = time.perf_counter() - began  # includes what a method computes first
    with whole(model):
        results["last"] = evaluate_split(recipe, final, encoder, folder / "ranks_last")
    best = folder / f"checkpoint-{trainer.state.best_global_step}"  # not the path in the state: a run may be moved
    trainer.model = encoder.model = ItmModel.from_pretrained(best).to(model.device)  # whole, unlike `model` in parts
    results["best"] = evaluate_split(recipe, final, encoder, folder / "ranks_best")
    results |= {
        "best_step": trainer.state.best_global_step,
        "best_val_rsum": trainer.state.best_metric,
        "steps": trainer.state.global_step,
        "seconds": None if checkpoint or goes_on else seconds,  # only of an uninterrupted run
        "waiting": trainer.waiting.share,
        "val_history": [entry for entry in trainer.state.log_history if "eval_rsum" in entry],
        "method_history": [entry for entry in trainer.state.log_history if any(key in entry for key in method.history)],
        "provenance": read_provenance(folder / "provenance.json"),
    }
    if trainer.guard is not None:
        results["guard"] = trainer.guard.report()
    return by_first(lambda: _finish(recipe, folder, trainer, data, results)) or results


def retrieve(recipe: Recipe, split: Split, *encoders: Encoder) -> dict[str, Result]:
    """Results of every protocol of the recipe on `split` under the encoders' current weights; several are an
    ensemble."""
    section = recipe.evaluation
    return evaluate_encoders(split, encoders, section.protocols, section.bootstrap, section.same_caption)


def evaluate_split(recipe: Recipe, split: Split, encoder: Encoder, ranks: Path | None = None) -> dict:
    """The same as plain mappings; the ranks of every query go into the folder `ranks`, a file per protocol."""
    results = retrieve(recipe, split, encoder)
    if ranks is not None and process_state().is_main_process:
        for name, result in results.items():
            result.save(ranks / f"{name}.npz")
    return {name: result.as_dict() for name, result in results.items()}


def beaten_by_step_0(results: dict) -> str | None:
    """A sentence if no checkpoint is better on val than the model was before training, else None."""
    before = results["val_history"][0]
    if before["step"] > 0 or before["eval_rsum"] <= results["best_val_rsum"]:
        return None
    return (
        f"No checkpoint beats the model before training on val (rsum {results['best_val_rsum']:.1f} against "
        f"{before['eval_rsum']:.1f})."
    )


def forgotten(results: dict) -> str | None:
    """A sentence if the guard of the run had to act, else None."""
    guard = results.get("guard")
    if guard is None or not guard["acted"]:
        return None
    seen = ", ".join(f"{entry['value']:.1f} at step {entry['step']}" for entry in guard["acted"])
    did = {
        "warn": "warned",
        "lower_rate": f"multiplied the learning rate by {guard['rate_factor']:g} each time",
        "stop": "ended the run",
    }[guard["action"]]
    return (
        f"The model forgot what it could: its {guard['metric']} on val was {guard['first']:.1f} before training and "
        f"{seen}. The guard of the run {did}."
    )


def _summary(recipe: Recipe, data: TrainingData, batches: int) -> str:
    lines = [f"{name:5s} {len(split):7d} photos  {len(split.pairs):7d} captions" for name, split in data.splits.items()]
    if skipped := [out for split in data.splits.values() for out in split.skipped]:
        item, _, reason = skipped[0]
        lines.append(
            f"left out: {counted(len(skipped), 'photo or caption', 'photos and captions')}, such as {item} ("
            f"{reason}); all in {SKIPPED}"
        )
    noise = data.noise
    drawn = f"from {recipe.noise.file}" if recipe.noise.file else f"seed {noise.seed}"
    lines.append(f"noise {noise.ratio:g} ({level_in_words(noise.description())}, {drawn}), hash {noise.sha256[:12]}")
    lines.append(
        (
            counted(recipe.training.max_steps, "step")
            if recipe.training.max_steps
            else counted(recipe.training.epochs, "epoch")
        )
        + f", {batches} {recipe.training.batches} batches of {recipe.training.contrastive_batch} pairs an epoch "
        f"-> {recipe.output_dir}"
    )
    return "\n".join(lines)


def _finish(recipe: Recipe, folder: Path, trainer: PairTrainer, data: TrainingData, results: dict) -> dict:
    """Write what the run has found, and return what results.json holds."""
    with best_effort("what this run believes of its pairs", f"clip-itm audit --run {folder} estimates it"):
        if (found := trainer.clean_probability()) is not None:
            record_added(folder, CLEAN_PROBABILITY)
            found.save(folder / CLEAN_PROBABILITY)
            truth = data.noise.truth(data.train.pairs)
            wrong = None if truth is None else ~truth
            results["wrong_pairs"] = wrong_pairs_found(found, wrong)
            if (share := share_found(found, wrong)) is not None:
                results["wrong_share"] = share
    results = json.loads(json.dumps(results), parse_constant=lambda _: None)  # NaN and infinity become null
    try:
        _publish(folder, trainer, results)
    except Exception as error:
        if (reason := failed_write(error)) is None:
            raise
        raise ValueError(
            f"{folder}: the run is trained, but its results could not be written: {reason}. Make room and run the same "
            "command again: it takes no more steps"
        ) from None
    _show(recipe, folder, results, trainer.model)
    return results


def _publish(folder: Path, trainer: PairTrainer, results: dict) -> None:
    """The best model as a folder that loads anywhere; results last, because they mark the run as finished."""
    with staged(folder, "best") as best:
        trainer.model.save_pretrained(best)
        trainer.processor.save_pretrained(best)
        for name in ("noise.npz", "recipe.yaml", "provenance.json"):
            shutil.copy(folder / name, best / name)
    write_json(folder / RESULTS, results)
    seal_run(folder)


def _show(recipe: Recipe, folder: Path, results: dict, model: ItmModel | None = None) -> None:
    """Curves and model card; an error in them is no reason to lose a run."""
    best, again = folder / "best", f"the same command makes it again (clip-itm train, output_dir {folder})"
    with best_effort("the model card", again):
        curves = False
        with best_effort("the picture of the card", again):
            curves = draw_curves(results["val_history"], results["best_step"], best / CURVES)
        citation = (model or ItmModel.from_pretrained(best)).head.citation
        notes = [note for note in (beaten_by_step_0(results), forgotten(results)) if note is not None]
        write_text(best / "README.md", model_card(recipe, results, citation, "\n\n".join(notes), curves))


@contextmanager
def best_effort(what: str, again: str) -> Iterator[None]:
    """A warning instead of an error, for what only shows a finished run."""
    try:
        yield
    except Exception as error:
        warnings.warn(f"{what} failed ({type(error).__name__}: {error}); {again}", stacklevel=3)
