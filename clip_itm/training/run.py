"""One run from recipe to table: start, resume or recognise it as finished, train, evaluate, write everything down."""

import json
import shutil
import sys
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from clip_itm.data.images import UnreadablePhotoError
from clip_itm.data.load import load_splits
from clip_itm.data.noise import CaptionNoise, load_noise
from clip_itm.data.rows import Split
from clip_itm.distributed import process_state
from clip_itm.evaluation.precision_result import PrecisionResult
from clip_itm.evaluation.protocols import evaluate_retrieval
from clip_itm.evaluation.result import RetrievalResult
from clip_itm.files import write_json, write_text
from clip_itm.hub.card import CURVES, model_card
from clip_itm.hub.curves import draw_curves
from clip_itm.model import ItmModel
from clip_itm.recipe import Recipe, load_recipe
from clip_itm.training.build import make_trainer
from clip_itm.training.clean_probability import FILE as CLEAN_PROBABILITY
from clip_itm.training.clean_probability import wrong_pairs_found
from clip_itm.training.ensemble import encode_ensemble
from clip_itm.training.setup import Encoder, TrainingData, demand_splits, final_split, given_bank, make_model, prepare
from clip_itm.training.trainer import last_complete_checkpoint

RESULTS = "results.json"
LEFT_OUT = "left_out.json"
METHOD_KEYS = ("method_epoch", "bank_clean")  # log entries of what a method knows about the pairs


def train(recipe: Recipe, overwrite: bool = False) -> dict:
    """Run `recipe` in `recipe.output_dir` and give back what `results.json` holds.

    A finished run of the same recipe is not repeated; an unfinished one is resumed from its last complete checkpoint.
    Raises ValueError for a folder that holds another run (unless `overwrite`) and for whatever is wrong with recipe or
    data. In the results, "zero_shot", "best" and "last" map each protocol to its figures on the split named by "split".
    """
    disable_progress_bar()  # of loading and saving weights; training and encoding have their own
    folder, state = Path(recipe.output_dir), process_state()
    if not overwrite and (finished := _finished(recipe, folder)) is not None:
        _say(f"{folder}: this run is finished; here are its results (--overwrite repeats it)")
        return finished

    data, sampler, provenance = prepare(recipe)
    if overwrite:
        _delete_run(folder)
    _demand_unchanged(folder, data.splits, data.noise, provenance.bank)
    checkpoint = last_complete_checkpoint(folder)
    _say(_summary(recipe, data, len(sampler)))
    model, processor = make_model(recipe, data.splits)
    encoder = Encoder(recipe, model, processor, data.image_cache)
    final = final_split(recipe, data.splits)
    trainer = make_trainer(recipe, data, sampler, encoder, provenance, resuming=checkpoint is not None)
    if state.is_main_process:
        provenance.write(folder, recipe)
        data.noise.save(folder / "noise.npz")
        write_left_out(folder / LEFT_OUT, data.splits)

    results = {
        "recipe_sha256": recipe.sha256,
        "split": final.name,
        "noise": provenance.noise,
        "seed": recipe.training.seed,
        "zero_shot": evaluate_split(recipe, final, encoder),
    }
    if checkpoint is not None:
        _say(f"resuming from {checkpoint}")
        trainer.load_method_state(checkpoint)
    try:
        outcome = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except UnreadablePhotoError as error:
        raise ValueError(
            f"{error}. It could be read when this run began: put it back and give the same command again, which goes "
            "on from the last checkpoint"
        ) from error
    results["last"] = evaluate_split(recipe, final, encoder, folder / "ranks_last")
    best = folder / f"checkpoint-{trainer.state.best_global_step}"  # not the path in the state: a run may be moved
    model.load_state_dict(ItmModel.from_pretrained(best).state_dict())
    results["best"] = evaluate_split(recipe, final, encoder, folder / "ranks_best")
    results |= {
        "best_step": trainer.state.best_global_step,
        "best_dev_rsum": trainer.state.best_metric,
        "steps": trainer.state.global_step,
        "seconds": None if checkpoint else outcome.metrics["train_runtime"],  # of a run that was not interrupted
        "dev_history": [entry for entry in trainer.state.log_history if "eval_rsum" in entry],
        "method_history": [entry for entry in trainer.state.log_history if any(key in entry for key in METHOD_KEYS)],
        "provenance": json.loads((folder / "provenance.json").read_text()),
    }
    if state.is_main_process:
        if (found := trainer.clean_probability()) is not None:
            found.save(folder / CLEAN_PROBABILITY)
            truth = data.noise.truth(data.train.pairs)
            results["wrong_pairs"] = wrong_pairs_found(found, None if truth is None else ~truth)
        _publish(folder, recipe, model, processor, results)
    state.wait_for_everyone()
    return results


def write_left_out(path: Path, splits: dict[str, Split]) -> None:
    """What the splits go without, photo by photo and caption by caption; no file where that is nothing."""
    if any(split.left_out for split in splits.values()):
        write_json(path, {name: [out._asdict() for out in split.left_out] for name, split in splits.items()})


def retrieve(recipe: Recipe, split: Split, *encoders: Encoder) -> dict[str, RetrievalResult | PrecisionResult]:
    """Results of every protocol of the recipe on `split` under the encoders' current weights; several are an
    ensemble."""
    embeddings, similarity = encode_ensemble(split, encoders)
    return evaluate_retrieval(
        embeddings.images,
        embeddings.texts,
        embeddings.caption_image,
        protocols=recipe.evaluation.protocols,
        similarity=similarity,
        bootstrap=recipe.evaluation.bootstrap,
        image_ids=split.pairs.image_ids.to_pylist(),
        caption_ids=split.pairs.caption_ids.to_pylist(),
    )


def evaluate_split(recipe: Recipe, split: Split, encoder: Encoder, ranks: Path | None = None) -> dict:
    """The same as plain mappings; the ranks of every query go into the folder `ranks`, a file a protocol."""
    results = retrieve(recipe, split, encoder)
    if ranks is not None and process_state().is_main_process:
        for name, result in results.items():
            result.save(ranks / f"{name}.npz")
    return {name: result.as_dict() for name, result in results.items()}


def beaten_by_step_0(results: dict) -> str | None:
    """A sentence where no checkpoint is better on dev than the model was before training."""
    before = results["dev_history"][0]
    if before["step"] > 0 or before["eval_rsum"] <= results["best_dev_rsum"]:
        return None
    return (
        f"No checkpoint beats the model before training on dev (rsum {results['best_dev_rsum']:.1f} against "
        f"{before['eval_rsum']:.1f})."
    )


def _finished(recipe: Recipe, folder: Path) -> dict | None:
    """The results of a finished run of this recipe, or None when there is work to do."""
    if not (folder / "recipe.yaml").is_file():
        return None
    found = load_recipe(folder)
    if found.sha256 != recipe.sha256:
        raise ValueError(
            f"{folder} holds a run of another recipe (different: {', '.join(_differences(found, recipe))}); "
            "choose another folder, or delete that run (`clip-itm train --overwrite`)"
        )
    if not (folder / RESULTS).is_file():
        return None
    try:
        splits = load_splits(recipe.data, verify=False)
    except (OSError, ValueError) as error:  # results stand where their data are gone
        _say(f"{folder}: whether its data are still the same cannot be checked: {error}")
        return json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    demand_splits(recipe, splits)
    noise = load_noise(recipe.noise, splits["train"].pairs)
    bank = given_bank(recipe, noise, splits["train"].pairs)
    _demand_unchanged(folder, splits, noise, None if bank is None else bank.sha256)
    return json.loads((folder / RESULTS).read_text())


def _delete_run(folder: Path) -> None:
    """Only what a run has written is deleted, never a folder that holds anything else."""
    state = process_state()
    if folder.exists() and any(folder.iterdir()) and not (folder / "provenance.json").is_file():
        raise ValueError(f"{folder} is no run of clip-itm: --overwrite does not delete it; choose another output_dir")
    state.wait_for_everyone()
    if state.is_main_process and folder.exists():
        shutil.rmtree(folder)
    state.wait_for_everyone()


def _differences(first: Recipe, second: Recipe) -> list[str]:
    one, other = first.model_dump(mode="json"), second.model_dump(mode="json")
    keys = []
    for section in one:
        if isinstance(one[section], dict):
            names = {**one[section], **other[section]}
            keys += [f"{section}.{key}" for key in names if one[section].get(key) != other[section].get(key)]
    return keys


def _demand_unchanged(folder: Path, splits: dict[str, Split], noise: CaptionNoise, bank: str | None) -> None:
    """A run goes on, and its results stand, only with the photos, captions and bank that it began with."""
    if not (folder / "provenance.json").is_file():
        return
    began = json.loads((folder / "provenance.json").read_text())
    hashes = {name: split["sha256"] for name, split in began["splits"].items()} | {"noise": began["noise"]["sha256"]}
    now = {name: split.sha256 for name, split in splits.items()} | {"noise": noise.sha256}
    if bank is not None or began.get("bank") is not None:
        hashes["bank"], now["bank"] = began.get("bank") or "none", bank or "none"
    changed = [
        f"{name} {hashes.get(name, 'none')[:12]} -> {now.get(name, 'none')[:12]}"
        for name in hashes | now
        if hashes.get(name) != now.get(name)
    ]
    if changed:
        raise ValueError(
            f"{folder}: the data have changed since this run began ({', '.join(changed)}); restore them, choose "
            "another output_dir, or start anew with --overwrite"
        )


def _summary(recipe: Recipe, data: TrainingData, batches: int) -> str:
    lines = [f"{name:5s} {len(split):7d} photos  {len(split.pairs):7d} captions" for name, split in data.splits.items()]
    if left_out := [out for split in data.splits.values() for out in split.left_out]:
        item, _, reason = left_out[0]
        lines.append(f"left out: {len(left_out)} photos and captions, such as {item} ({reason}); all in {LEFT_OUT}")
    noise = data.noise
    drawn = f"from {recipe.noise.file}" if recipe.noise.file else f"seed {noise.seed}"
    lines.append(f"noise {noise.ratio:g} ({noise.level} level, {drawn}), hash {noise.sha256[:12]}")
    lines.append(
        (f"{recipe.training.max_steps} steps" if recipe.training.max_steps else f"{recipe.training.epochs} epochs")
        + f", {batches} {recipe.training.batches} batches of {recipe.training.batch_size} pairs an epoch "
        f"-> {recipe.output_dir}"
    )
    return "\n".join(lines)


def _publish(folder: Path, recipe: Recipe, model: ItmModel, processor, results: dict) -> None:
    """The best model as a folder that loads anywhere; results last, because they mark the run as finished."""
    best = folder / "best"
    model.save_pretrained(best)
    processor.save_pretrained(best)
    shutil.copy(folder / "noise.npz", best / "noise.npz")
    for name in ("recipe.yaml", "provenance.json"):
        shutil.copy(folder / name, best / name)
    curves = draw_curves(results["dev_history"], results["best_step"], best / CURVES)
    card = model_card(recipe, results, model.head.citation, beaten_by_step_0(results), curves)
    write_text(best / "README.md", card)
    write_json(folder / RESULTS, results)


def _say(text: str) -> None:
    if process_state().is_main_process:
        print(text, file=sys.stderr, flush=True)
