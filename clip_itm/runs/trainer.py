"""`ItmTrainer`: a run from Python. Its arguments are another spelling of a recipe, which it holds and saves."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, TrainerCallback

from clip_itm.data.configuration import DataSection, FolderData, HubData, NoiseSection, ParquetData, WebDatasetData
from clip_itm.data.given import GivenData, given_data
from clip_itm.data.load import load_splits
from clip_itm.data.rows import Split
from clip_itm.distributed import process_state
from clip_itm.evaluation.configuration import EvaluationSection
from clip_itm.methods.section import HeadSection
from clip_itm.model import ItmModel
from clip_itm.processing import ItmProcessor
from clip_itm.recipe import Recipe, load_recipe, parse_recipe
from clip_itm.runs.additions import Additions, Kept
from clip_itm.runs.folder import RunFolder
from clip_itm.runs.models import find_model, remember, take_place, weights_hash
from clip_itm.runs.train import run
from clip_itm.section import RecipeError
from clip_itm.training.configuration import TrainingSection
from clip_itm.visible import counted

NAMES_DATA = ("source", "path", "root")
GIVEN_AS = (FolderData, HubData, WebDatasetData, ParquetData)  # what a name or data in memory may become


class ItmTrainer:
    """Trains a model on images and captions, in the folder of a run, as `clip-itm train` does with `recipe`.

    model: from `load_model`, or what that takes. It is trained in place.
    data: a `Dataset` (split by a hash of its images) or `DatasetDict` of datasets; a list of {"image", "caption"} or
        (image, caption), images being PIL images, paths, arrays or bytes; a dict of these by split; a folder, a name on
        the Hub, or a `data:` section. What is in memory is written to `<output_dir>/data` when training begins.
    method: its name, or a `head:` section with `kind`.
    output_dir: the folder of the run. noise: the share of captions to shuffle, or a `noise:` section. evaluation: an
        `evaluation:` section.
    callbacks: of transformers; an `EarlyStoppingCallback` becomes `early_stopping_patience` of the recipe.
    compute_metrics: `compute_metrics(embeddings, ranks)` of the val split gives more metrics for the history.
    report_to: trackers as transformers names them ("none", "all", "tensorboard", ...); default: `trackers`.
    keys: those of `training:` (epochs, batch_size, learning_rate, ...) and, unless `data` is a section, those of
        `data:` (image_column, caption_column, cache_images, ...), with their defaults.

    `recipe` is all of that as a `Recipe`; `model` after `train()` is the best model; `data` are the splits.
    Raises `RecipeError`, a ValueError, for unknown or wrong arguments, and ValueError for data without captions.

    >>> trainer = ItmTrainer(model, rows, method="npc", epochs=3, output_dir="runs/products")
    >>> results = trainer.train()
    """

    def __init__(
        self,
        model: Any,
        data: Any,
        method: str | Mapping[str, Any] | HeadSection = "clip",
        *,
        output_dir: str | Path = "runs/run",
        noise: float | Mapping[str, Any] | NoiseSection | None = None,
        evaluation: Mapping[str, Any] | EvaluationSection | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        compute_metrics: Callable[..., Mapping[str, float]] | None = None,
        report_to: str | Sequence[str] | None = None,
        **keys: Any,
    ):
        folder = Path(output_dir)
        training = {name: keys.pop(name) for name in list(keys) if name in TrainingSection.model_fields}
        if report_to is not None:
            training["trackers"] = _trackers(report_to)
        callbacks = _without_early_stopping(callbacks, training)
        found = _data(data, keys, folder / "data")
        self._given = found if isinstance(found, GivenData) else None
        self._kept: list[Kept] = []
        if self._given is not None:
            self._kept.append(Kept("data", self._given.content, self._given.save))
        content = {
            "output_dir": str(output_dir),
            "data": found.section if isinstance(found, GivenData) else found,
            **self._model(model, folder),
            "head": {"kind": method} if isinstance(method, str) else method,
            "training": training,
        }
        if noise is not None:
            content["noise"] = {"ratio": noise} if isinstance(noise, int | float) else noise
        if evaluation is not None:
            content["evaluation"] = evaluation
        self._set(parse_recipe(content, type(self).__name__), callbacks, compute_metrics)

    @classmethod
    def from_recipe(
        cls,
        recipe: str | Path | Recipe,
        *,
        callbacks: Sequence[TrainerCallback] = (),
        compute_metrics: Callable[..., Mapping[str, float]] | None = None,
    ) -> "ItmTrainer":
        """A trainer from a `Recipe`, a YAML file or the run that holds one; `callbacks` and `compute_metrics` as for
        `ItmTrainer`.

        Raises `RecipeError` for a recipe that cannot be used.

        >>> ItmTrainer.from_recipe("recipes/sample/clip.yaml").train()
        """
        trainer = cls.__new__(cls)
        trainer.model, trainer._given, trainer._kept = None, None, []
        loaded = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
        trainer._set(loaded, list(callbacks), compute_metrics)
        return trainer

    def train(self, overwrite: bool = False) -> dict[str, Any]:
        """Train and return what `results.json` holds; see `clip_itm.train`.

        A finished run is not repeated, an interrupted one resumes from its last checkpoint. overwrite: delete what a
        run wrote in the folder, and start anew. Raises ValueError for a folder that holds another run.

        >>> trainer.train()["best"]["all"]["metrics"]["rsum"]
        """
        if self.results is None and self.model is not None and weights_hash(self.model) != self._weights:
            raise ValueError("the model was changed after this trainer was made of it: make another trainer")
        self.results = run(self.recipe, overwrite, self._additions)
        best = ItmModel.from_pretrained(self.run.model).to(process_state().device)
        best.processor = ItmProcessor.from_pretrained(self.run.model)
        if self.model is None:
            self.model = best
        else:
            take_place(self.model, best)
        remember(self.model, self.recipe.backbone, str(self.run.path))
        return self.results

    @property
    def run(self) -> RunFolder:
        """The folder of the run."""
        return RunFolder(Path(self.recipe.output_dir))

    @cached_property
    def data(self) -> dict[str, Split]:
        """The splits by name: train, val and, if there is one, test."""
        return load_splits(self.recipe.data, given=None if self._given is None else self._given.splits)

    def _set(self, recipe: Recipe, callbacks: list[TrainerCallback], compute_metrics: Any) -> None:
        self.recipe, self.results = recipe, None
        self._additions = Additions(tuple(self._kept), tuple(callbacks), compute_metrics)

    def _model(self, model: Any, folder: Path) -> dict[str, Any]:
        """`backbone` and `start_from` of a model; one that has changed since it was loaded is kept."""
        if not isinstance(model, ItmModel):
            self.model = None
            section, start_from = find_model(model, {})
            return {"backbone": section, "start_from": start_from}
        self.model, self._weights = model, weights_hash(model)
        changed = [name for name, one in model.named_parameters() if one.requires_grad != model._trains.get(name)]
        if changed:
            raise ValueError(
                f"model: {counted(len(changed), 'weight')}, such as {changed[0]}, were frozen or thawed by "
                "hand, which no recipe "
                "says: load it with freeze_image, freeze_text_blocks, lora, ... (load_model)"
            )
        origin = getattr(model, "origin", None)
        if origin is not None and origin.content == self._weights:
            return {"backbone": origin.backbone, "start_from": origin.start_from}
        if model.processor is None:
            raise ValueError("model: it has no processor: load it with load_model, or set model.processor")
        self._kept.append(Kept("start", self._weights, lambda place: _save(model, place)))
        return {"backbone": model.config.backbone, "start_from": str(folder / "start")}


def _save(model: ItmModel, folder: Path) -> None:
    model.save_pretrained(folder)
    model.processor.save_pretrained(folder)


def _data(data: Any, keys: dict[str, Any], path: Path) -> Any:
    """The `data` section, or what is in memory; the error for an unknown argument names a similar one."""
    if isinstance(data, DataSection) or (isinstance(data, Mapping) and "source" in data):
        known: list[str] = []
    else:
        fields = dict.fromkeys(name for section in GIVEN_AS for name in section.model_fields)
        known = [name for name in fields if name not in NAMES_DATA]
    for name in keys:
        if name not in known:
            near = difflib.get_close_matches(name, [*TrainingSection.model_fields, *known], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise RecipeError(
                f"{name}: unknown argument{hint} (known here: {', '.join([*TrainingSection.model_fields, *known])})"
            )
    return given_data(data, keys, path) if known else data


def _trackers(report_to: str | Sequence[str]) -> list[str]:
    names = [report_to] if isinstance(report_to, str) else list(report_to)
    return ["auto" if name == "all" else name for name in names if name != "none"]


def _without_early_stopping(callbacks: Sequence[TrainerCallback], training: dict[str, Any]) -> list[TrainerCallback]:
    """The callbacks that no recipe can hold; early stopping goes into the `training` section."""
    others = []
    for callback in callbacks:
        if not isinstance(callback, EarlyStoppingCallback):
            others.append(callback)
            continue
        said = {
            "early_stopping_patience": callback.early_stopping_patience,
            "early_stopping_threshold": callback.early_stopping_threshold or 0.0,
        }
        if any(training.get(key, value) != value for key, value in said.items()):
            raise RecipeError(f"early_stopping_patience: the EarlyStoppingCallback says otherwise: {said}")
        training |= said
    return others
