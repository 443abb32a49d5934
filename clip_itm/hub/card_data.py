"""The metadata block of a model card: what the Hub shows, filters by and compares."""

import re
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from clip_itm.evaluation.report import METRIC_NAMES, columns_of
from clip_itm.recipe import Recipe

COMMON = {
    "library_name": "transformers",
    "license": "apache-2.0",
    # the Hub knows no tag for retrieval between photos and sentences; CLIP models carry this one
    "pipeline_tag": "zero-shot-image-classification",
}
TAGS = ["clip-itm", "image-text-retrieval", "clip"]
BARE_DATA = ModelCardData(**COMMON, tags=TAGS)
DIRECTIONS = {"i2t": "Image to text", "t2i": "Text to image"}


def card_data(recipe: Recipe, results: dict) -> ModelCardData:
    """Metadata of a run: base models and data set where they have names on the Hub, results with intervals."""
    tags = [*TAGS, "noisy-correspondence", recipe.head.kind]
    return ModelCardData(
        **COMMON,
        tags=tags,
        base_model=base_models(recipe) or None,
        base_model_relation="finetune" if base_models(recipe) else None,
        datasets=[dataset] if (dataset := _hub_dataset(recipe)) else None,
        metrics=["recall"],
        model_name=base_name(recipe),
        eval_results=[
            _eval_result(recipe, results, protocol, metric)
            for protocol, result in results["best"].items()
            for metric in columns_of([result["metrics"]])
        ],
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
        dataset_config=protocol,
        dataset_split=results["split"],
        dataset_args={"split_sha256": results["provenance"]["splits"][results["split"]]["sha256"]},
        metric_type="recall" if kind in ("r1", "r5", "r10") else kind or metric,
        metric_name=f"{DIRECTIONS[direction]} {METRIC_NAMES[kind]}" if kind else "Sum of the six recalls",
        metric_value=round(result["metrics"][metric], 2),
        metric_args=interval and {f"interval_{result['bootstrap']['level']}": [round(end, 2) for end in interval]},
    )


def base_name(recipe: Recipe) -> str:
    """What training started from, for people; of a local file or folder, only its last name."""
    backbone = recipe.backbone
    match backbone.kind:
        case "bert-vit":
            return f"{_last_name(backbone.text_model)} + {_last_name(backbone.vision_model)}"
        case "timm-words" | "regions":
            image = "regions" if backbone.kind == "regions" else _last_name(backbone.image_model)
            return f"{image} + {_last_name(backbone.text_model) if backbone.text_encoder == 'bert' else 'words'}"
        case "open_clip":
            tag = f" ({_last_name(backbone.pretrained)})" if backbone.pretrained else ""
            return _last_name(backbone.model.removeprefix("hf-hub:").removeprefix("local-dir:")) + tag
    return _last_name(backbone.model)


def _last_name(name: str) -> str:
    return Path(name).name.removesuffix(".json") if Path(name).exists() or not _is_hub_name(name) else name


def base_models(recipe: Recipe) -> list[str]:
    """Names on the Hub of what training started from, as far as they have one."""
    backbone = recipe.backbone
    match backbone.kind:
        case "bert-vit":
            names = [backbone.text_model, backbone.vision_model]
        case "timm-words" | "regions":
            names = [backbone.text_model] if backbone.text_encoder == "bert" else []
            if backbone.kind == "timm-words" and backbone.image_model.startswith(("hf-hub:", "hf_hub:")):
                names.append(backbone.image_model[len("hf-hub:") :])
        case "open_clip":
            names = [_open_clip_name(backbone)]
        case _:
            names = [] if backbone.from_scratch else [backbone.model]
    return [name for name in names if name and _is_hub_name(name) and not Path(name).exists()]


def _open_clip_name(backbone) -> str | None:
    if backbone.model.startswith("hf-hub:"):
        return backbone.model.removeprefix("hf-hub:")
    if backbone.pretrained is None:
        return None
    import open_clip

    found = open_clip.get_pretrained_cfg(backbone.model, backbone.pretrained)
    return found.get("hf_hub", "").strip("/") or None


def _hub_dataset(recipe: Recipe) -> str | None:
    data = recipe.data
    if data.source != "hub" or Path(data.path).exists() or not _is_hub_name(data.path):
        return None
    return data.path


def _is_hub_name(name: str) -> bool:
    return re.fullmatch(r"([\w.-]+/)?[\w.-]+", name) is not None and not name.endswith((".json", ".safetensors", ".pt"))
