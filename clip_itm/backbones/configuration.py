"""`backbone:` section of a recipe: which two towers, and how they are trained."""

import glob
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveInt, model_validator

from clip_itm.backbones.section import BackboneSection, HubPart, saved_model
from clip_itm.backbones.word_sections import RegionsBackbone, TimmWordsBackbone
from clip_itm.section import filled_in


class OpenClipBackbone(BackboneSection):
    """A model of open_clip."""

    library: ClassVar = "open_clip"
    exports_to: ClassVar = ("open_clip", "transformers", "onnx")

    kind: Literal["open_clip"] = "open_clip"
    model: str = Field(
        "ViT-B-32-quickgelu", description="architecture, hf-hub:NAME, local-dir:PATH, or a config FILE.json"
    )
    pretrained: str | None = Field(None, description="tag such as openai, or a weights file")
    image_weights: str | None = Field(None, description="safetensors for the timm image tower of a config FILE.json")
    context_length: PositiveInt | None = Field(
        None,
        description="tokens of longer captions: positions are stretched (Long-CLIP: 248); default: the model's own",
    )
    model_config_dict: dict[str, Any] | None = filled_in("makes checkpoints whole")

    @property
    def brings_weights(self) -> bool:
        """Whether `model` is a place with weights, and not an architecture."""
        return self.model.startswith(("hf-hub:", "local-dir:"))

    @property
    def display_names(self) -> list[str]:
        return [self.model.removeprefix("hf-hub:").removeprefix("local-dir:")]

    @property
    def weights_tag(self) -> str | None:
        return self.pretrained

    @property
    def base_models(self) -> list[str]:
        if self.pretrained:
            return [f"open_clip:{self.model}:{self.pretrained}"]
        if self.brings_weights:
            return self.display_names
        return [self.image_weights] if self.image_weights else []

    @property
    def random_part(self) -> str | None:
        if self.pretrained or self.brings_weights:
            return None
        return "the text tower" if self.image_weights else "all"

    def hub_parts(self) -> list[HubPart]:
        if self.model.startswith("hf-hub:"):
            name = self.model.removeprefix("hf-hub:")
            instead = "give a folder as backbone.model: local-dir:PATH"
            return [HubPart("model", name, glob.escape(name), instead, or_path=False)]
        if self.pretrained is None or not is_open_clip_tag(self.pretrained):
            return []
        instead = (
            "give a weights file as backbone.pretrained, or a folder as backbone.model: local-dir:PATH, or null for "
            "random weights"
        )
        # a tag such as openai does not name the repository
        return [HubPart("pretrained", self.pretrained, "*", instead, file="open_clip_*")]

    @model_validator(mode="after")
    def _weights_have_one_source(self):
        if self.pretrained and self.brings_weights:
            raise ValueError(f"pretrained: {self.model} brings its own weights, leave pretrained out")
        if self.image_weights and (self.pretrained or not self.model.endswith(".json")):
            raise ValueError("image_weights goes with a config FILE.json that has a timm_model_name, and no pretrained")
        return self


def is_open_clip_tag(name: str) -> bool:
    """Whether open_clip (not imported here) knows weights of this name; if not, its own error lists those it knows."""
    folder = find_spec("open_clip").submodule_search_locations[0]
    known = (Path(folder) / "pretrained.py").read_text(encoding="utf-8")
    return f" {name.replace('-', '_').lower()}=" in known


class TransformersBackbone(BackboneSection):
    """A model of transformers with two towers, such as CLIP and SigLIP."""

    library: ClassVar = "transformers"
    exports_to: ClassVar = ("open_clip", "transformers", "onnx")

    kind: Literal["transformers"] = "transformers"
    model: str = Field(description="name on the Hub or a saved folder (CLIP, SigLIP, ...)")
    revision: str | None = Field(None, description="branch, tag or commit on the Hub; default: its main branch")
    from_scratch: bool = Field(False, description="use the architecture of `model` with random weights")
    context_length: PositiveInt | None = Field(
        None,
        description="tokens of longer captions: positions are stretched (Long-CLIP: 248); default: the model's own",
    )
    max_num_patches: PositiveInt | None = Field(
        None, description="limit per photo for SigLIP 2 of variable resolution (NaFlex); default: the model's own, 256"
    )
    model_config_dict: dict[str, Any] | None = filled_in("makes checkpoints whole")

    @property
    def base_models(self) -> list[str]:
        return [] if self.from_scratch else [self.model]

    @property
    def random_part(self) -> str | None:
        return "all" if self.from_scratch else None

    def hub_parts(self) -> list[HubPart]:
        return [saved_model("model", self.model)]

    @model_validator(mode="after")
    def _random_towers_train(self):
        for option in ("freeze_image", "freeze_text", "freeze_image_blocks", "freeze_text_blocks", "lora"):
            if self.from_scratch and getattr(self, option):
                raise ValueError(f"{option} would keep random weights (from_scratch: true): leave one of the two out")
        return self


class BertVitBackbone(BackboneSection):
    """A ViT and a BERT of transformers, with new projections after them."""

    library: ClassVar = "transformers"
    exports_to: ClassVar = ("transformers", "onnx")

    kind: Literal["bert-vit"] = "bert-vit"
    text_model: str = Field("bert-base-uncased", description="BERT: name on the Hub or a saved folder")
    vision_model: str = Field("google/vit-base-patch16-224-in21k", description="ViT: name on the Hub or a saved folder")
    embed_dim: PositiveInt = Field(512, description="width of the common space")
    model_config_dict: dict[str, Any] | None = filled_in("makes checkpoints whole")

    @property
    def display_names(self) -> list[str]:
        return [self.text_model, self.vision_model]

    @property
    def base_models(self) -> list[str]:
        return self.display_names

    @property
    def random_part(self) -> str:
        return "the projection into the common space"

    def hub_parts(self) -> list[HubPart]:
        return [saved_model("vision_model", self.vision_model), saved_model("text_model", self.text_model)]


BackboneConfig = Annotated[
    OpenClipBackbone | TransformersBackbone | BertVitBackbone | TimmWordsBackbone | RegionsBackbone,
    Field(discriminator="kind"),
]
