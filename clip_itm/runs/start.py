"""`start_from` of a recipe: a model of this package whose weights replace pretrained ones."""

import hashlib
import math
from pathlib import Path

from huggingface_hub import snapshot_download

from clip_itm.backbones.build import build_backbone
from clip_itm.backbones.section import BackboneSection
from clip_itm.configuration import ItmConfig
from clip_itm.files import model_folder
from clip_itm.methods.base import Head
from clip_itm.methods.section import HeadSection
from clip_itm.model import ItmModel
from clip_itm.offline import require_path
from clip_itm.processing import ItmProcessor
from clip_itm.visible import counted
from clip_itm.weights import trains_only

MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")  # no code: this package's is used


def start_folder(place: str | Path) -> Path:
    """The folder of a model, given by a run, a model folder or a name on the Hub. ValueError if there is none."""
    if Path(place).expanduser().exists():
        return model_folder(Path(place).expanduser())
    require_path(place)
    try:
        return model_folder(snapshot_download(str(place), allow_patterns=list(MODEL_FILES)))
    except Exception as error:  # of the Hub and its HTTP library
        raise ValueError(f"start_from: {place}: cannot get this model from the Hub ({error})") from error


def start_sha256(place: str | Path) -> str:
    """Hash of configuration and weights of the model, as they are in its files."""
    folder = start_folder(place)
    digest = hashlib.sha256()
    for path in [folder / "config.json", *sorted(folder.glob("model*.safetensors"))]:
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def started_model(backbone: BackboneSection, head: HeadSection, place: str | Path) -> tuple[ItmModel, ItmProcessor]:
    """A model made from the sections `backbone` and `head` with the weights of the one at `place`, and its processor.

    A head of the same kind gives its weights, another one only its temperature; adapters are kept if they are the same,
    else merged into the weights. Raises ValueError if `backbone` names other towers.
    """
    folder = start_folder(place)
    start, processor = ItmModel.from_pretrained(folder), ItmProcessor.from_pretrained(folder)
    resolved = _resolved(backbone, start.backbone.config, place)
    if backbone.lora != start.backbone.config.lora:
        start = start.without_lora()
    same_modules = backbone.lora == start.backbone.config.lora
    towers = build_backbone(resolved, weights=False, processor=processor)
    if type(start.head).scale is not Head.scale:  # it has a temperature
        towers.initial_logit_scale = math.log(float(start.head.scale().detach()))
    if not same_modules:  # adapters are added afterwards
        towers.load_state_dict(start.backbone.state_dict())
    config = ItmConfig(backbone=towers.config.model_dump(mode="json"), head=head.model_dump(mode="json"))
    model = ItmModel(config, backbone=towers)
    if same_modules:
        model.backbone.load_state_dict(start.backbone.state_dict())
    if head.kind == start.head.config.kind:
        _take_head(model.head, start.head, place)
    model.processor = processor
    return model, processor


def _resolved(backbone: BackboneSection, own: BackboneSection, place: str | Path) -> BackboneSection:
    """`backbone` with the keys that the program filled in for the model."""
    if type(backbone) is not type(own):
        raise ValueError(
            f"start_from: {place} has towers of backbone.kind {own.kind}, and the recipe names {backbone.kind}"
        )
    filled = {}
    for key in type(own).model_fields:
        here, there = getattr(backbone, key), getattr(own, key)
        if here is None and key != "lora":
            filled[key] = there
        elif here != there and key != "lora" and not trains_only(key):
            raise ValueError(
                f"start_from: {place} was made with backbone.{key} {there!r}, and the recipe says {here!r}: name the "
                "same towers, as its recipe.yaml does"
            )
    return backbone.model_copy(update=filled)


def _take_head(head: Head, start: Head, place: str | Path) -> None:
    """Load the weights of the head, without what only training needs."""
    own, other = head.state_dict(), start.state_dict()
    omitted = tuple(f"{part}." for part in head.training_only)
    wanted = {name for name in own if not name.startswith(omitted)} if omitted else set(own)
    if strange := [name for name in wanted if name not in other or other[name].shape != own[name].shape]:
        raise ValueError(
            f"start_from: the head of {place} does not fit: "
            f"{counted(len(strange), 'weight of this one', 'weights of this one')}, such as {strange[0]}, "
            "are not in it or have another size; write the same head section, or another kind of head"
        )
    head.load_state_dict({**own, **{name: other[name] for name in wanted}})
