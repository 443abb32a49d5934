"""The model card of a run: what a stranger has to know before trusting its numbers."""

import yaml

from clip_itm.evaluation.report import markdown_table
from clip_itm.recipe import Recipe


def model_card(recipe: Recipe, splits: dict, results: dict, citation: str, note: str | None = None) -> str:
    """Markdown with the metadata block of the Hub on top."""
    metadata = {
        "library_name": "clip-itm",
        "pipeline_tag": "zero-shot-image-classification",
        "tags": list(dict.fromkeys(["image-text-retrieval", "clip", "noisy-correspondence", recipe.head.kind])),
    }
    base = base_model(recipe)
    stages = {"zero_shot": "step 0 (zero-shot)", "best": "best checkpoint by dev (this model)", "last": "last"}
    rows = [(label, result) for stage, label in stages.items() for result in results[stage].values()]
    noise, provenance = results["noise"], results["provenance"]
    return f"""---
{yaml.safe_dump(metadata, sort_keys=False).strip()}
---
# {base}, fine-tuned for image-text matching on {recipe.data.source}

Method: `{recipe.head.kind}`. Backbone: `{recipe.backbone.kind}`, {base}. These are the weights of step
{results["best_step"]} of {results["steps"]}, the best by recall on the dev split (rsum {results["best_dev_rsum"]:.1f}).

## Recall on {results["split"]}, percent

{markdown_table(rows)}{_caution(results, note)}

## Data

| split | photos | captions | left out because missing | hash |
|---|---|---|---|---|
{_split_lines(splits)}

Caption noise in training: ratio {noise["ratio"]:g} at {noise["level"]} level, seed {noise["seed"]}, hash
`{noise["sha256"]}`. The dev and test splits carry none.

## How it was made

`clip-itm train recipe.yaml` with the `recipe.yaml` beside this file (hash `{results["recipe_sha256"]}`), seed
{results["seed"]}, on {provenance["machine"]["processes"]} process(es), {provenance["machine"]["device"]};
{_versions(provenance["versions"])}.

## How to load it

```python
from clip_itm import ItmModel, ItmProcessor

model = ItmModel.from_pretrained("PATH").eval()
processor = ItmProcessor.from_pretrained("PATH")
images = model.encode_images(processor(images=[photo], return_tensors="pt")["pixel_values"])
texts = model.encode_texts(**processor(text=["a dog in the snow"], return_tensors="pt"))
print(model.head.similarity(images, texts))
```

## Citation of the method

```bibtex
{citation}
```
"""


def _caution(results: dict, note: str | None) -> str:
    notes = [note] if note else []
    if results["split"] == "val":
        notes.append("There is no test split: the checkpoint was chosen on the split it is evaluated on: flattering.")
    return "".join(f"\n{text}\n" for text in notes)


def base_model(recipe: Recipe) -> str:
    """The name of what training started from."""
    backbone = recipe.backbone
    if backbone.kind == "bert-vit":
        return f"{backbone.text_model} + {backbone.vision_model}"
    if backbone.kind == "timm-words":
        return f"{backbone.image_model} + words"
    return (
        backbone.model if backbone.kind == "transformers" else f"{backbone.model} ({backbone.pretrained or 'no tag'})"
    )


def _split_lines(splits: dict) -> str:
    return "\n".join(
        f"| {name} | {len(split)} | {len(split.pairs)} | {len(split.missing)} | `{split.sha256}` |"
        for name, split in splits.items()
    )


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{package} {number}" for package, number in versions.items())
