"""The model card of a run: what a stranger has to know before using the model or trusting its numbers."""

import inspect
import re
from collections.abc import Mapping

import yaml
from huggingface_hub import ModelCard

from clip_itm.backbones.configuration import BackboneConfig
from clip_itm.backbones.positions import KEPT
from clip_itm.backbones.section import BackboneSection
from clip_itm.calibration.words import share_in_words
from clip_itm.data.noise import level_in_words
from clip_itm.evaluation.report import has_too_few, markdown_table, too_few
from clip_itm.keys import section_types, tags
from clip_itm.recipe import Recipe
from clip_itm.runs.card_data import BARE_DATA, base_models, base_name, card_data, licence
from clip_itm.visible import code, counted, fence, markdown, visible

PLACE = "PATH_OR_REPO"  # where the model is; a push replaces it with the name of the repository
CURVES = "curves.png"
STAGES = {"zero_shot": "step 0 (before training)", "best": "best by val (this model)", "last": "last step"}


def model_card(recipe: Recipe, results: dict, citation: str, note: str | None = None, curves: bool = False) -> str:
    """Markdown with the metadata block of the Hub on top, from what `results.json` of a run holds.

    `citation`: BibTeX of the method; `note`: a caution on the results; `curves`: whether curves.png is next to it.
    """
    parts = [
        f"---\n{card_data(recipe, results).to_yaml()}\n---",
        f"# {markdown(base_name(recipe))}, fine-tuned for image-text matching",
        _summary(recipe, results),
        _use(type(recipe.backbone)),
        _recall(results, note, curves),
        _data(recipe, results),
        _making(recipe, results),
        licence_section(licence(recipe)),
        f"## Citation of the method\n\n```bibtex\n{citation}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def bare_card(config: dict, origin: dict | None) -> str:
    """The card of a model without a run: `config` as in config.json, `origin` as in imported_from.json."""
    backbone, head = config["backbone"], config["head"] or {"kind": "clip"}
    facts = [
        f"An {code(backbone['kind'])} backbone with the head {code(head['kind'])} of clip_itm. No finished run of "
        "clip_itm goes with it: nothing is said here about its data or its recall.",
    ]
    if origin is not None:
        facts.append(f"Imported from {code(origin['file'])} (SHA-256 {code(origin['sha256'])}).")
    parts = [
        f"---\n{BARE_DATA.to_yaml()}\n---\n# Image-text matching model",
        "\n".join(facts),
        _use(_section_of(backbone["kind"])),
        licence_section({}),
    ]
    return "\n\n".join(parts) + "\n"


def _summary(recipe: Recipe, results: dict) -> str:
    hub = base_models(recipe)
    links = ", ".join(f"[{name}](https://huggingface.co/{name})" for name in hub) or markdown(base_name(recipe))
    method = (inspect.getdoc(type(recipe.head)) or "").partition("\n")[0]
    return (
        "Two towers that put photos and captions into one space, made with clip_itm, a toolkit for fine-tuning CLIP "
        f"when some of the captions are wrong.\n\n"
        f"- **Base**: {links} ({code(recipe.backbone.kind)})\n{_longer_captions(recipe.backbone)}"
        f"- **Method**: {code(recipe.head.kind)}. {method}\n"
        f"- **Weights**: {_weights(results)}\n"
        f"- **Trained on**: {markdown(recipe.data.source)}, with {_noise(results['noise'])}"
    )


def _longer_captions(backbone: BackboneSection) -> str:
    length = getattr(backbone, "context_length", None)
    if length is None:
        return ""
    return (
        f"- **Captions**: up to {length} tokens, more than the base reads. The positions after the first {KEPT} were "
        "interpolated before training (Long-CLIP, arXiv 2403.15378 section 3.1)\n"
    )


def _weights(results: dict) -> str:
    if results["best_step"] is None or results["best_val_rsum"] is None:  # nothing was evaluated on val
        return f"step {results['steps']}, the last one"
    return (
        f"step {results['best_step']} of {results['steps']}, the best by recall on the val split "
        f"(rsum {results['best_val_rsum']:.1f})"
    )


def _noise(noise: dict) -> str:
    if not noise["ratio"]:
        return "captions as they came"
    if noise["ratio"] == 1:
        return f"all captions exchanged ({noise['level']} level)"
    return f"{100 * noise['ratio']:g} % of the captions exchanged ({noise['level']} level)"


def _recall(results: dict, note: str | None, curves: bool) -> str:
    rows = [(label, result) for stage, label in STAGES.items() for result in results[stage].values()]
    parts = [f"## Recall on {results['split']}, percent", markdown_table(rows).strip()]
    if note:
        parts.append(note)
    if small := [result["images"] for _, result in rows if has_too_few(result)]:
        parts.append(f"The {too_few(results['split'], min(small))}. These figures are not in the metadata.")
    if results["split"] == "val":
        parts.append("There is no test split: the checkpoint was chosen on the split it is evaluated on: flattering.")
    if curves:
        parts.append(f"![Recall on the val split over the steps of training]({CURVES})")
    return "\n\n".join(parts)


def _data(recipe: Recipe, results: dict) -> str:
    noise = results["noise"]
    drawn = f"seed {noise['seed']}" if recipe.noise.file is None else "from a file"
    lines = ["## Data", "", "| split | photos | captions | left out | hash |", "|---|---|---|---|---|"]
    for name, split in results["provenance"]["splits"].items():
        counts = f"{split['images']:,} | {split['captions']:,} | {_skipped(split)}"
        lines.append(f"| {markdown(name)} | {counts} | `{split['sha256']}` |")
    lines += [
        "",
        f"Caption noise in training: ratio {noise['ratio']:g} ({markdown(level_in_words(noise))}), {drawn}, hash "
        f"`{noise['sha256']}`. The val and test splits carry none.",
    ]
    if judged := results.get("wrong_share"):
        lines += ["", _wrong_share(judged)]
    if found := results.get("wrong_pairs"):
        lines += ["", _wrong_pairs(found, results["provenance"]["splits"]["train"]["captions"])]
    return "\n".join(lines)


def _skipped(split: dict) -> str:
    kinds = {"missing": "missing photo", "broken": "broken photo", "empty_captions": "empty caption"}
    return ", ".join(counted(split[key], kind) for key, kind in kinds.items() if split.get(key)) or "nothing"


def _wrong_share(judged: Mapping) -> str:
    share = judged["share"] or 0.0, judged["low"], judged["high"]
    told = share_in_words(share, "of the training captions are wrong", is_weak=judged["share"] is None)
    return f"By its own estimate: {told}."


def _wrong_pairs(found: Mapping, pairs: int) -> str:
    start = f"Of {counted(pairs, 'training pair')} {found['wrong']:,} are wrong."
    if found["auc"] is None:  # all of them are: there is nothing to tell apart
        return f"{start} Where all are, there is nothing to tell them from."
    return (
        f"{start} The method ranks them by suspicion with an AUC of {found['auc']:.3f}; among the {found['wrong']:,} "
        f"most suspicious, {100 * found['precision']:.1f} % are wrong."
    )


def _making(recipe: Recipe, results: dict) -> str:
    provenance = results["provenance"]
    machine = provenance["machine"]
    took = "" if results["seconds"] is None else f", {results['seconds']:,.0f} s of training"
    content = _yaml(recipe).strip()
    versions = ", ".join(f"{package} {number}" for package, number in provenance["versions"].items())
    return f"""## How it was made

```bash
{_command(recipe, machine["processes"])}
```

with [`recipe.yaml`](recipe.yaml) (hash `{results["recipe_sha256"]}`, seed {results["seed"]}); the same data must have
the hashes above. Made on {counted(machine["processes"], "process", "processes")}, {machine["device"]}{took};
{versions}.

<details><summary>The whole recipe</summary>

{fence(content)}yaml
{content}
{fence(content)}

</details>"""


def _yaml(recipe: Recipe) -> str:
    """The recipe, with characters that change the direction of text escaped: readers see what it says."""
    content = recipe.to_yaml()
    if content == visible(content, kept="\n"):
        return content
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)


def _command(recipe: Recipe, processes: int) -> str:
    """What repeats the run with the files of this repository; paths of the maker's machine are placeholders."""
    words = ["clip-itm train recipe.yaml --output_dir runs/again"]
    if processes > 1:
        launch = f"accelerate launch --num_processes {processes} --module clip_itm.cli"
        words = [f"{launch} train recipe.yaml --output_dir runs/again"]
    if getattr(recipe.data, "root", None) is not None:
        words.append("--data.root PHOTOS")
    if recipe.noise.file is not None:
        words.append("--noise.file noise.npz")
    return " ".join(words)


def _section_of(kind: str) -> type[BackboneSection]:
    """The section of a kind; for one that this package does not know, what all kinds have in common."""
    sections = {tag: section for section in section_types(BackboneConfig) for tag in tags(section)}
    return sections.get(kind, BackboneSection)


def _use(backbone: type[BackboneSection]) -> str:
    if backbone.reads_regions:
        return f"## How to use it\n\n{USE_REGIONS}\n\n{USE_PACKAGE}"
    parts = ["## How to use it", USE, USE_PACKAGE, *([USE_OPEN_CLIP] if backbone.library == "open_clip" else [])]
    return "\n\n".join(parts)


USE = f"""Search photos with sentences, or captions with a photo:

```python
from transformers import pipeline

pipe = pipeline("image-text-retrieval", model="{PLACE}", trust_remote_code=True)
pipe.index(["beach.jpg", "forest.jpg", "street.jpg"])
print(pipe("a dog in the snow", top_k=2))
```

Embeddings and their similarity, with transformers alone:

```python
from PIL import Image
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("{PLACE}", trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained("{PLACE}", trust_remote_code=True)
images = model.encode_images(**processor(images=[Image.open("beach.jpg").convert("RGB")]))
texts = model.encode_texts(**processor(text=["a dog in the snow"]))
print(model.head.similarity(images, texts))
```"""

USE_REGIONS = f"""It reads precomputed region features, no photos:

```python
import numpy as np
import torch
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("{PLACE}", trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained("{PLACE}", trust_remote_code=True)
regions = torch.from_numpy(np.load("test_ims.npy")[:8])  # [8, 36, C]
images = model.encode_images(image_tokens=regions.float())
texts = model.encode_texts(**processor(text=["a dog in the snow"]))
print(model.head.similarity(images, texts))
```"""

USE_PACKAGE = f"""With the package clip_itm, which also evaluates it, nothing of the repository is executed:

```python
from clip_itm import ItmModel, ItmProcessor

model = ItmModel.from_pretrained("{PLACE}").eval()
processor = ItmProcessor.from_pretrained("{PLACE}")
```"""

USE_OPEN_CLIP = f"""As a native checkpoint of open_clip, for programs that know nothing of either:

```bash
hf download {PLACE} --local-dir model
clip-itm export model --to open_clip --out model_open_clip
```

```python
import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:model_open_clip")
tokenizer = open_clip.get_tokenizer("local-dir:model_open_clip")
```"""

NO_LICENCE = "None is given for the weights: whoever shares them says under which (`clip-itm push --license NAME`)."


def licence_section(metadata: Mapping[str, str]) -> str:
    """`metadata`: `license` and the like of the card, empty if no licence is known."""
    weights = NO_LICENCE if not metadata else licence_of_weights(metadata.get("license_name", metadata["license"]))
    return f"""## Requirements and licence

Python 3.11 or newer and the packages of [`requirements.txt`](requirements.txt). The code in this repository is under
Apache-2.0. {weights} The licences of the base weights, and of the photos and captions, apply to what was made from
them."""


def licence_of_weights(name: str) -> str:
    return f"The weights are under the licence {code(name)}."


def with_licence(card: str, name: str) -> str:
    """The card with the licence that the maker of the weights names."""
    changed = ModelCard(card, ignore_metadata_errors=True)
    for key in ("license_name", "license_link"):
        changed.data.pop(key, None)
    changed.data.license = name
    said = rf"{re.escape(NO_LICENCE)}|The weights are under the licence `[^\n]*?`\."
    return re.sub(said, lambda _: licence_of_weights(name), str(changed))
