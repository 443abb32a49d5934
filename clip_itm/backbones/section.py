"""What the `backbone:` sections of a recipe have in common."""

import glob
from typing import Annotated, ClassVar, NamedTuple

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from clip_itm.section import Section, filled_in

Probability = Annotated[float, Field(ge=0, lt=1)]


class HubPart(NamedTuple):
    """Something that a section takes from the Hub.

    `key`: the key of the section; `name`: its value; `or_path`: whether a file or folder of that name comes first;
    `repository`, `file`: patterns of where it is on the Hub; `instead`: advice on what works without network.
    """

    key: str
    name: str
    repository: str
    instead: str
    or_path: bool = True
    file: str | None = None


def saved_model(key: str, name: str) -> HubPart:
    """A model of transformers, named on the Hub or a folder."""
    return HubPart(key, name, glob.escape(name), "give a folder written by save_pretrained")


class LoraSection(Section):
    """Low-rank adapters through peft (`pip install clip-itm[lora]`)."""

    rank: PositiveInt = Field(8, description="rank of the adapters")
    alpha: PositiveInt = Field(16, description="adapters are scaled by alpha / rank")
    dropout: Probability = Field(0.0, description="dropout on the input of the adapters")
    targets: list[str] | None = Field(None, description="endings of layer names; default: all layers of the blocks")


class BackboneSection(Section):
    """What every kind shares, and what the rest of the package, which knows no kind by name, asks of it.

    Raises `ValueError` (through pydantic) for combinations in which an option would do nothing.
    """

    reads_regions: ClassVar[bool] = False  # the data contain precomputed regions, no images
    library: ClassVar[str | None] = None  # whose model class holds both towers: open_clip, transformers
    exports_to: ClassVar[tuple[str, ...]] = ("onnx",)  # targets of `clip-itm export` that can hold the towers

    freeze_image: bool = Field(False, description="freeze the image tower (the head after it still trains)")
    freeze_text: bool = Field(False, description="freeze the text tower (the head after it still trains)")
    freeze_image_blocks: NonNegativeInt = Field(0, description="how many of the lowest blocks (and the stem) to freeze")
    freeze_text_blocks: NonNegativeInt = Field(
        0, description="how many of the lowest blocks (and the embeddings) to freeze"
    )
    image_dropout: Probability = Field(0.0, description="dropout on image features and tokens, before new layers")
    text_dropout: Probability = Field(0.0, description="dropout on text features and tokens, before new layers")
    word_dropout: Probability = Field(0.0, description="share of caption words hidden in training")
    lora: LoraSection | None = Field(None, description="train low-rank adapters of the towers, not their weights")
    special_token_ids: list[int] | None = filled_in("tokens that are no words")
    hidden_word_id: int | None = filled_in("the token in place of a hidden word")

    @property
    def display_names(self) -> list[str]:
        """Names of the towers for people: names of models, or paths."""
        model = getattr(self, "model", None)
        return [model if isinstance(model, str) else getattr(self, "kind", "towers of its own")]

    @property
    def weights_tag(self) -> str | None:
        """What distinguishes several weights of one architecture, for people."""
        return None

    @property
    def base_models(self) -> list[str]:
        """The pretrained weights that training starts from: names on the Hub, paths, or names such as timm:NAME."""
        model = getattr(self, "model", None)
        return [model] if isinstance(model, str) else []

    @property
    def random_part(self) -> str | None:
        """What has random weights before training, as far as the recipe says; None if all is pretrained."""
        return None

    def hub_parts(self) -> list[HubPart]:
        """What must exist, here or on the Hub, before the towers can be built."""
        return []

    @model_validator(mode="after")
    def _every_option_does_something(self):
        for tower in ("image", "text"):
            if getattr(self, f"freeze_{tower}") and getattr(self, f"freeze_{tower}_blocks"):
                raise ValueError(f"freeze_{tower} freezes every block: leave freeze_{tower}_blocks out")
            if self.lora is not None and getattr(self, f"freeze_{tower}_blocks"):
                raise ValueError(f"lora freezes every block and trains adapters: leave freeze_{tower}_blocks out")
        if self.lora is not None and self.freeze_image and self.freeze_text:
            raise ValueError(
                "lora with freeze_image and freeze_text adapts nothing: unfreeze a tower, or leave lora out"
            )
        if self.freeze_text and self.word_dropout:
            raise ValueError("word_dropout does nothing where freeze_text holds the text tower still: leave one out")
        return self
