"""`load_model`: a model from wherever it is; it remembers its origin, which a recipe can then name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import xxhash
from accelerate.utils import set_seed  # that of transformers imports its trainer, which would delay an evaluation
from transformers import PreTrainedConfig
from transformers.utils.logging import disable_progress_bar

from clip_itm.backbones.build import build_processor
from clip_itm.backbones.section import BackboneSection
from clip_itm.distributed import process_state
from clip_itm.methods.clip.configuration import ClipHeadConfig
from clip_itm.model import ItmModel
from clip_itm.offline import require_source
from clip_itm.processing import ItmProcessor
from clip_itm.reading import read_json
from clip_itm.recipe import parse_section
from clip_itm.runs.start import start_folder, started_model
from clip_itm.weights import add_tensors

EXPECTED = (
    "expected a run, a model folder, a name on the Hub, MODEL:TAG of open_clip such as ViT-B-32-quickgelu:openai, or "
    "the keys of a backbone section"
)


class Origin(NamedTuple):
    """Where a model comes from: two keys of a recipe, and a hash of the weights that it had then."""

    backbone: BackboneSection
    start_from: str | None
    content: str


def load_model(model: str | Path | Mapping[str, Any] | BackboneSection, *, seed: int = 0, **keys: Any) -> ItmModel:
    """A model with its processor, in float32, on the GPU if there is one.

    model: a run (its best model), a folder or a name on the Hub, of a model of this package or of a CLIP or SigLIP of
    transformers; `MODEL:TAG` of open_clip, `hf-hub:NAME`; or a `backbone:` section, as a dict or an object. keys: of
    that section, such as `freeze_image=True` or `lora={"rank": 8}`. seed: for what has no pretrained weights; a trainer
    draws that anew, from its own `seed`.

    Raises ValueError for anything else, and for unknown keys.

    >>> model = load_model("openai/clip-vit-base-patch32", freeze_text=True)
    >>> model.encode("a red mug").shape
    (512,)
    """
    disable_progress_bar()  # of loading weights, which takes a second
    section, start_from = find_model(model, keys)
    set_seed(seed)
    if start_from is None:
        loaded = ItmModel.from_backbone(section, ClipHeadConfig(), build_processor(section, None))
    elif keys:
        loaded, _ = started_model(section, _head_of(start_from), start_from)
    else:
        folder = start_folder(start_from)
        loaded = ItmModel.from_pretrained(folder)
        loaded.processor = ItmProcessor.from_pretrained(folder)
    loaded.eval().to(process_state().device)
    remember(loaded, section, start_from)
    return loaded


def find_model(model: Any, keys: Mapping[str, Any]) -> tuple[BackboneSection, str | None]:
    """The `backbone` section, and `start_from` if the weights are those of a model of this package."""
    if isinstance(model, BackboneSection):
        model = model.model_dump(mode="json")
    if isinstance(model, Mapping):
        return parse_section("backbone", {**model, **keys}, "model"), None
    if not isinstance(model, str | Path):
        raise ValueError(f"model: {type(model).__name__} is no model; {EXPECTED}")
    content, start_from = _named(str(model))
    return parse_section("backbone", {**content, **keys}, f"model {model}"), start_from


def remember(model: ItmModel, backbone: BackboneSection, start_from: str | None) -> None:
    model.origin = Origin(backbone, start_from, weights_hash(model))


def weights_hash(model: ItmModel) -> str:
    digest = xxhash.xxh3_128()
    add_tensors(digest, model.state_dict())
    return digest.hexdigest()


def take_place(model: ItmModel, other: ItmModel) -> None:
    """Make `model` what `other` is, in place: as in transformers, the model that was given is the one trained."""
    model.__dict__.clear()
    model.__dict__.update(other.__dict__)


def _named(name: str) -> tuple[dict[str, Any], str | None]:
    folder = Path(name).expanduser()
    if name.startswith(("hf-hub:", "local-dir:")) or (folder.is_file() and name.endswith(".json")):
        return {"kind": "open_clip", "model": name}, None
    if folder.exists():
        return _in_folder(name, folder)
    architecture, colon, tag = name.removeprefix("open_clip:").partition(":")
    if colon:
        return {"kind": "open_clip", "model": architecture, "pretrained": tag}, None
    if "/" not in name:
        raise ValueError(f"model: there is no folder {name}; {EXPECTED} (an architecture needs weights: {name}:TAG)")
    require_source(name)
    try:
        kind = PreTrainedConfig.get_config_dict(name)[0].get("model_type")
    except OSError:  # no config.json: a repository of open_clip
        return {"kind": "open_clip", "model": f"hf-hub:{name}"}, None
    if kind == "clip_itm":
        return _own(name, start_folder(name))
    return {"kind": "transformers", "model": name}, None


def _in_folder(name: str, folder: Path) -> tuple[dict[str, Any], str | None]:
    if (folder / "best" / "config.json").is_file():
        return _own(name, folder / "best")
    if (folder / "config.json").is_file():
        config = read_json(folder / "config.json", "the configuration of a model")
        own = config.get("model_type") == "clip_itm"
        return _own(name, folder) if own else ({"kind": "transformers", "model": name}, None)
    if (folder / "open_clip_config.json").is_file():
        return {"kind": "open_clip", "model": f"local-dir:{name}"}, None
    raise ValueError(f"model: {name} holds no model; {EXPECTED}")


def _own(name: str, folder: Path) -> tuple[dict[str, Any], str]:
    return read_json(folder / "config.json", "the configuration of a model", ("backbone",))["backbone"], name


def _head_of(start_from: str):
    config = read_json(start_folder(start_from) / "config.json", "the configuration of a model")
    return parse_section("head", config.get("head") or {"kind": "clip"}, f"model {start_from}")
