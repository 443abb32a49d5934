"""The metadata block of a model card: what the Hub shows, filters by and compares."""

import re
from math import isfinite
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData, metadata_load, try_to_load_from_cache
from yaml import YAMLError

from clip_itm.evaluation.report import METRIC_NAMES, columns_of, has_too_few
from clip_itm.recipe import Recipe
from clip_itm.visible import visible

COMMON = {
    "library_name": "transformers",
    # the Hub knows no tag for retrieval between images and sentences; CLIP models carry this one
    "pipeline_tag": "zero-shot-image-classification",
}
TAGS = ["clip-itm", "image-text-retrieval", "clip"]
BARE_DATA = ModelCardData(**COMMON, tags=TAGS)
DIRECTIONS = {"i2t": "Image to text", "t2i": "Text to image"}


def card_data(recipe: Recipe, results: dict) -> ModelCardData:
    """Metadata of a run: base models and data set if they have names on the Hub, results with intervals.

    A split that is too small gives no results: the Hub ranks models by them.
    """
    tags = [*TAGS, "noisy-correspondence", recipe.head.kind]
    return ModelCardData(
        **COMMON,
        **licence(recipe),
        tags=tags,
        base_model=base_models(recipe) or None,
        base_model_relation="finetune" if base_models(recipe) else None,
        datasets=[dataset] if (dataset := _hub_dataset(recipe)) else None,
        metrics=["recall"],
        model_name=visible(base_name(recipe)),
        eval_results=[
            _eval_result(recipe, results, protocol, metric)
            for protocol, result in results["best"].items()
            if not has_too_few(result)
            for metric in columns_of([result["metrics"]])
            if isfinite(result["metrics"][metric])
        ]
        or None,
    )


def _eval_result(recipe: Recipe, results: dict, protocol: str, metric: str) -> EvalResult:
    result = results["best"][protocol]
    direction, _, kind = metric.partition("_")
    interval = result["intervals"].get(metric)
    return EvalResult(
        task_type="image-text-retrieval",
        task_name="Image-text retrieval",
        dataset_type=_hub_dataset(recipe) or recipe.data.source,
        dataset_name=_hub_dataset(recipe) or recipe.data.source,
        dataset_config=result["protocol"],
        dataset_split=results["split"],
        dataset_args={"split_sha256": results["provenance"]["splits"][results["split"]]["sha256"]},
        metric_type="recall" if kind in ("r1", "r5", "r10") else kind or metric,
        metric_name=f"{DIRECTIONS[direction]} {METRIC_NAMES[kind]}" if kind else "Sum of the six recalls",
        metric_value=round(result["metrics"][metric], 2),
        metric_args=interval and {f"interval_{result['bootstrap']['level']}": [round(end, 2) for end in interval]},
    )


def base_name(recipe: Recipe) -> str:
    """What training started from, for people; of a local file or folder, only the last part of its path."""
    name, tag = " + ".join(map(_last_name, recipe.backbone.display_names)), recipe.backbone.weights_tag
    return f"{name} ({_last_name(tag)})" if tag else name


def _last_name(name: str) -> str:
    return Path(name).name.removesuffix(".json") if Path(name).exists() or not _is_hub_name(name) else name


def base_models(recipe: Recipe) -> list[str]:
    """Names on the Hub of what training started from, as far as they have one."""
    names = map(_hub_name, recipe.base_models)
    return [name for name in names if name and _is_hub_name(name) and not Path(name).exists()]


def _hub_name(base: str) -> str | None:
    if not base.startswith("open_clip:"):
        return base
    import open_clip

    found = open_clip.get_pretrained_cfg(*base.split(":", 2)[1:])
    return found.get("hf_hub", "").strip("/") or None


def licence(recipe: Recipe) -> dict[str, str]:
    """`license` (with `license_name`, `license_link`) of all that training started from, else nothing.

    It is what the cards of the base models say, in their folders or in the cache of the Hub. Nothing is known of models
    that disagree, of weights without a card, and of random weights.
    """
    found = [_licence_of(_hub_name(base) or base) for base in recipe.base_models]
    return found[0] if found and all(each == found[0] for each in found) else {}


def _licence_of(base: str) -> dict[str, str]:
    card = Path(base) / "README.md"
    if not card.is_file() and _is_hub_name(base):
        cached = try_to_load_from_cache(base, "README.md")
        card = Path(cached) if isinstance(cached, str) else card
    try:
        said = metadata_load(card) or {}
    except (OSError, ValueError, YAMLError):  # no card, or one that cannot be read
        return {}
    known = {key: said.get(key) for key in ("license", "license_name", "license_link")}
    if not isinstance(known["license"], str):
        return {}
    return {key: value for key, value in known.items() if isinstance(value, str)}


def _hub_dataset(recipe: Recipe) -> str | None:
    name = recipe.data.hub_dataset
    return None if name is None or Path(name).exists() or not _is_hub_name(name) else name


def _is_hub_name(name: str) -> bool:
    return re.fullmatch(r"([\w.-]+/)?[\w.-]+", name) is not None and not name.endswith((".json", ".safetensors", ".pt"))
