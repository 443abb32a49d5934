"""One run from recipe to table: start, resume or recognise it as finished, train, evaluate, write everything down."""

import json
import shutil
import sys
from pathlib import Path

from accelerate import PartialState
from transformers.utils.logging import disable_progress_bar

from clip_itm.data.noise import CaptionNoise
from clip_itm.data.rows import Split
from clip_itm.evaluation.protocols import evaluate_retrieval
from clip_itm.evaluation.result import RetrievalResult
from clip_itm.files import write_json, write_text
from clip_itm.model import ItmModel
from clip_itm.recipe import Recipe, load_recipe
from clip_itm.training.card import model_card
from clip_itm.training.setup import Encoder, TrainingData, final_split, make_model, make_trainer, prepare
from clip_itm.training.trainer import last_complete_checkpoint

RESULTS = "results.json"


def train(recipe: Recipe, overwrite: bool = False) -> dict:
    """Run `recipe` in `recipe.output_dir` and give back what `results.json` holds.

    A finished run of the same recipe is not repeated; an unfinished one is resumed from its last complete checkpoint.
    Raises ValueError for a folder that holds another run (unless `overwrite`) and for whatever is wrong with recipe or
    data. In the results, "zero_shot", "best" and "last" map each protocol to its figures on the split named by "split".
    """
    disable_progress_bar()  # of loading and saving weights; training and encoding have their own
    folder, state = Path(recipe.output_dir), PartialState()
    finished = _open_folder(recipe, folder, overwrite)
    if finished is not None:
        _say(f"{folder}: this run is finished; here are its results (--overwrite repeats it)")
        return finished

    data, sampler, provenance = prepare(recipe)
    _check_noise(folder, data)
    checkpoint = last_complete_checkpoint(folder)
    _say(_summary(recipe, data, len(sampler)))
    model, processor = make_model(recipe, data.splits)
    encoder = Encoder(recipe, model, processor, data.image_cache)
    final = final_split(recipe, data.splits)
    trainer = make_trainer(recipe, data, sampler, encoder, provenance, resuming=checkpoint is not None)
    if state.is_main_process:
        provenance.write(folder, recipe)
        data.noise.save(folder / "noise.npz")

    results = {
        "recipe_sha256": recipe.sha256,
        "split": final.name,
        "noise": provenance.noise,
        "seed": recipe.training.seed,
        "zero_shot": evaluate_split(recipe, final, encoder),
    }
    if checkpoint is not None:
        _say(f"resuming from {checkpoint}")
    outcome = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    results["last"] = evaluate_split(recipe, final, encoder, folder / "ranks_last.npz")
    best = folder / f"checkpoint-{trainer.state.best_global_step}"  # not the path in the state: a run may be moved
    model.load_state_dict(ItmModel.from_pretrained(best).state_dict())
    results["best"] = evaluate_split(recipe, final, encoder, folder / "ranks_best.npz")
    results |= {
        "best_step": trainer.state.best_global_step,
        "best_dev_rsum": trainer.state.best_metric,
        "steps": trainer.state.global_step,
        "seconds": outcome.metrics["train_runtime"],
        "dev_history": [entry for entry in trainer.state.log_history if "eval_rsum" in entry],
        "provenance": json.loads((folder / "provenance.json").read_text()),
    }
    if state.is_main_process:
        _publish(folder, recipe, data, model, processor, results)
    state.wait_for_everyone()
    return results


def retrieve(recipe: Recipe, split: Split, encoder: Encoder) -> dict[str, RetrievalResult]:
    """Results of every protocol of the recipe on `split` under the encoder's current weights."""
    embeddings = encoder.encode(split)
    return evaluate_retrieval(
        embeddings.images,
        embeddings.texts,
        embeddings.caption_image,
        protocols=recipe.evaluation.protocols,
        similarity=encoder.model.head.similarity,
        bootstrap=recipe.evaluation.bootstrap,
    )


def evaluate_split(recipe: Recipe, split: Split, encoder: Encoder, ranks_file: Path | None = None) -> dict:
    """The same as plain mappings; the ranks of every query go into `ranks_file`."""
    results = retrieve(recipe, split, encoder)
    if ranks_file is not None and PartialState().is_main_process:
        next(iter(results.values())).save(ranks_file)
    return {name: result.as_dict() for name, result in results.items()}


def _open_folder(recipe: Recipe, folder: Path, overwrite: bool) -> dict | None:
    """The results of a finished run of this recipe, or None when there is work to do."""
    state = PartialState()
    if overwrite and state.is_main_process and folder.exists():
        shutil.rmtree(folder)
    state.wait_for_everyone()
    if not (folder / "recipe.yaml").is_file():
        return None
    found = load_recipe(folder)
    if found.sha256 != recipe.sha256:
        raise ValueError(
            f"{folder} holds a run of another recipe (different: {', '.join(_differences(found, recipe))}); "
            "choose another folder, or delete that run (`clip-itm train --overwrite`)"
        )
    results = folder / RESULTS
    return json.loads(results.read_text()) if results.is_file() else None


def _differences(first: Recipe, second: Recipe) -> list[str]:
    one, other = first.model_dump(mode="json"), second.model_dump(mode="json")
    keys = []
    for section in one:
        if isinstance(one[section], dict):
            names = {**one[section], **other[section]}
            keys += [f"{section}.{key}" for key in names if one[section].get(key) != other[section].get(key)]
    return keys


def _check_noise(folder: Path, data: TrainingData) -> None:
    """A run goes on only with the captions it began with."""
    saved = folder / "noise.npz"
    if saved.is_file() and (found := CaptionNoise.load(saved)).sha256 != data.noise.sha256:
        raise ValueError(
            f"{saved}: the run began with noise {found.sha256[:12]}, the data now give {data.noise.sha256[:12]}: "
            "captions or noise file have changed; restore them, or start anew with --overwrite"
        )


def _summary(recipe: Recipe, data: TrainingData, batches: int) -> str:
    lines = [f"{name:5s} {len(split):7d} photos  {len(split.pairs):7d} captions" for name, split in data.splits.items()]
    missing = [path for split in data.splits.values() for path in split.missing]
    if missing:
        lines.append(f"left out: {len(missing)} photos that are missing or empty, such as {missing[0]}")
    noise = data.noise
    drawn = f"from {recipe.noise.file}" if recipe.noise.file else f"seed {noise.seed}"
    lines.append(f"noise {noise.ratio:g} ({noise.level} level, {drawn}), hash {noise.sha256[:12]}")
    lines.append(
        f"{recipe.training.epochs} epochs of {batches} {recipe.training.batches} batches of "
        f"{recipe.training.batch_size} pairs -> {recipe.output_dir}"
    )
    return "\n".join(lines)


def _publish(folder: Path, recipe: Recipe, data: TrainingData, model: ItmModel, processor, results: dict) -> None:
    """The best model as a folder that loads anywhere; results last, because they mark the run as finished."""
    best = folder / "best"
    model.save_pretrained(best)
    processor.save_pretrained(best)
    shutil.copy(folder / "noise.npz", best / "noise.npz")
    for name in ("recipe.yaml", "provenance.json"):
        shutil.copy(folder / name, best / name)
    write_text(best / "README.md", model_card(recipe, data.splits, results))
    write_json(folder / RESULTS, results)


def _say(text: str) -> None:
    if PartialState().is_main_process:
        print(text, file=sys.stderr, flush=True)
