"""`backbone:` section of a recipe: which two towers, and how they are trained."""

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from clip_itm.section import Section

Probability = Annotated[float, Field(ge=0, lt=1)]
Layers = Annotated[int, Field(gt=0, le=1000)]


class LoraSection(Section):
    """Low-rank adapters through peft (`pip install clip-itm[lora]`)."""

    rank: PositiveInt = 8
    alpha: PositiveInt = 16
    dropout: Probability = 0.0
    targets: list[str] | None = Field(
        None, description="names of layers, as they end; default: every linear and attention layer of the blocks"
    )


class BackboneSection(Section):
    """What every backbone shares.

    Raises `ValueError` (through pydantic) for combinations in which an option would do nothing.
    """

    freeze_image: bool = Field(False, description="train nothing of the image tower (its head behind it still trains)")
    freeze_text: bool = False
    freeze_image_blocks: NonNegativeInt = Field(
        0, description="lowest blocks (and the stem below) that stay as they are"
    )
    freeze_text_blocks: NonNegativeInt = 0
    image_dropout: Probability = Field(0.0, description="dropout on image features and tokens, before new layers")
    text_dropout: Probability = Field(0.0, description="dropout on text features and tokens, before new layers")
    word_dropout: Probability = Field(0.0, description="share of caption words hidden in training")
    lora: LoraSection | None = None
    special_token_ids: list[int] | None = Field(None, description="filled in by the program: tokens that are no words")
    hidden_word_id: int | None = Field(
        None, description="filled in by the program: the token in place of a hidden word"
    )

    def called(self) -> list[str]:
        """What people call the towers: names of models, or paths."""
        model = getattr(self, "model", None)
        return [model if isinstance(model, str) else getattr(self, "kind", "towers of its own")]

    def bases(self) -> list[str]:
        """The pretrained weights that training starts from: names on the Hub, paths, or names such as timm:NAME."""
        model = getattr(self, "model", None)
        return [model] if isinstance(model, str) and not getattr(self, "from_scratch", False) else []

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


class OpenClipBackbone(BackboneSection):
    kind: Literal["open_clip"] = "open_clip"
    model: str = Field(
        "ViT-B-32-quickgelu", description="architecture, hf-hub:NAME, local-dir:PATH, or a config FILE.json"
    )
    pretrained: str | None = Field(None, description="tag such as openai, or a weights file")
    image_weights: str | None = Field(None, description="safetensors for the timm tower of a config file alone")
    model_config_dict: dict[str, Any] | None = Field(
        None, description="filled in by the program; makes checkpoints whole"
    )

    def called(self) -> list[str]:
        return [self.model.removeprefix("hf-hub:").removeprefix("local-dir:")]

    def bases(self) -> list[str]:
        if self.pretrained:
            return [f"open_clip:{self.model}:{self.pretrained}"]
        if self.model.startswith(("hf-hub:", "local-dir:")):
            return self.called()
        return [self.image_weights] if self.image_weights else []

    @model_validator(mode="after")
    def _weights_have_one_source(self):
        if self.pretrained and self.model.startswith(("hf-hub:", "local-dir:")):
            raise ValueError(f"pretrained: {self.model} brings its own weights, leave pretrained out")
        if self.image_weights and (self.pretrained or not self.model.endswith(".json")):
            raise ValueError("image_weights goes with a config FILE.json that has a timm_model_name, and no pretrained")
        return self


class TransformersBackbone(BackboneSection):
    kind: Literal["transformers"] = "transformers"
    model: str = Field(description="name on the Hub or a saved folder (CLIP, SigLIP, ...)")
    revision: str | None = None
    from_scratch: bool = Field(False, description="use the architecture of `model` with random weights")
    model_config_dict: dict[str, Any] | None = Field(
        None, description="filled in by the program; makes checkpoints whole"
    )

    @model_validator(mode="after")
    def _random_towers_train(self):
        for option in ("freeze_image", "freeze_text", "freeze_image_blocks", "freeze_text_blocks", "lora"):
            if self.from_scratch and getattr(self, option):
                raise ValueError(f"{option} would keep random weights (from_scratch: true): leave one of the two out")
        return self


class BertVitBackbone(BackboneSection):
    kind: Literal["bert-vit"] = "bert-vit"
    text_model: str = "bert-base-uncased"
    vision_model: str = "google/vit-base-patch16-224-in21k"
    embed_dim: PositiveInt = 512
    model_config_dict: dict[str, Any] | None = Field(
        None, description="filled in by the program; makes checkpoints whole"
    )

    def called(self) -> list[str]:
        return [self.text_model, self.vision_model]

    def bases(self) -> list[str]:
        return self.called()


class CaptionTowerSection(BackboneSection):
    """A caption tower with a width of its own: a GRU over words, or BERT."""

    embed_dim: PositiveInt = 1024
    word_dim: PositiveInt = Field(300, description="width of word embeddings (and of the transformer)")
    embedding_dropout: Probability = Field(0.0, description="dropout on word embeddings")
    hidden_dropout: Probability = Field(0.0, description="dropout inside the text tower")
    bidirectional: bool = Field(True, description="read captions in both directions (states are averaged), or one")
    text_pooling: Literal["mean", "max", "gpo", "attention", "last", "first"] = Field(
        "mean", description="of states to the caption's vector; last: final states of a GRU; first: BERT's first token"
    )
    text_tokens: Literal["states", "words"] = Field(
        "states", description="what heads read word by word: states, or the word embeddings below a GRU (DivE)"
    )
    text_model: str = Field("bert-base-uncased", description="of text_encoder bert: name on the Hub or a saved folder")
    text_projection: bool = Field(True, description="of text_encoder bert: a linear layer to embed_dim behind it")
    text_model_config: dict[str, Any] | None = Field(
        None, description="filled in by the program; makes checkpoints whole"
    )
    min_word_count: PositiveInt = Field(4, description="rarer words of the training captions are unknown")
    max_words: PositiveInt = Field(100, description="longer captions are cut")
    vocab_size: PositiveInt | None = Field(None, description="filled in by the program; makes checkpoints whole")

    def called(self) -> list[str]:
        image = getattr(self, "image_model", "regions")
        return [image, self.text_model if self.text_encoder == "bert" else "words"]

    def bases(self) -> list[str]:
        return [self.text_model] if self.text_encoder == "bert" else []

    def _demand_defaults(self, options: tuple[str, ...], reason: str) -> None:
        """ValueError where an option was set that does nothing here."""
        for option in options:
            if getattr(self, option) != type(self).model_fields[option].default:
                raise ValueError(f"{option}: {reason}; leave it out")


class TimmWordsBackbone(CaptionTowerSection):
    """Any timm image tower, and a text tower: a small one from scratch over words of the training captions, or BERT."""

    kind: Literal["timm-words"] = "timm-words"
    image_model: str = "mobilenetv2_100"
    image_kwargs: dict[str, Any] = Field({}, description="for timm.create_model, e.g. {pad_type: same}")
    image_weights: str | None = Field(None, description="safetensors of the tower; default: timm's pretrained weights")
    image_pretrained: bool = Field(True, description="timm's pretrained weights where image_weights is not given")
    image_size: PositiveInt = 224
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.5, 0.5, 0.5)
    image_grid: PositiveInt | None = Field(
        None, description="average the feature map to so many tokens a side, for heads that read tokens; default: all"
    )
    normalize_image_features: bool = Field(True, description="L2-normalise pooled tower features before dropout")
    embed_dim: PositiveInt = 256
    text_encoder: Literal["bag", "gru", "transformer", "bigru", "bert"] = Field(
        "bag", description="gru: layers of both directions, projected; bigru: one, averaged (regions call it gru)"
    )
    text_hidden: PositiveInt = Field(
        512, description="hidden width of the bag's MLP, of a GRU direction, of the feed-forward"
    )
    text_layers: Layers = Field(2, description="layers of the gru and the transformer")
    text_heads: PositiveInt = Field(4, description="attention heads of the transformer; divides word_dim")
    min_word_count: PositiveInt = Field(2, description="rarer words of the training captions become [UNK]")
    max_words: PositiveInt = Field(64, description="longer captions are cut")

    def bases(self) -> list[str]:
        name = self.image_model
        if self.image_weights:
            image = [self.image_weights]
        elif not self.image_pretrained:
            image = []
        else:
            image = [name[len("hf-hub:") :] if name.startswith(("hf-hub:", "hf_hub:")) else f"timm:{name}"]
        return super().bases() + image

    @model_validator(mode="after")
    def _text_tower_is_from_scratch(self):
        for option in ("freeze_text", "freeze_text_blocks"):
            if getattr(self, option) and not (self.text_encoder == "bert" and option == "freeze_text_blocks"):
                raise ValueError(f"{option}: the text tower of timm-words starts from random weights and has to train")
        if self.lora is not None:
            raise ValueError(
                "lora: timm-words has no pretrained transformer pair to adapt; use open_clip or transformers"
            )
        fields = type(self).model_fields
        if self.text_encoder == "bag" and self.text_layers != fields["text_layers"].default:
            raise ValueError("text_layers: a bag of words has one hidden layer; choose text_encoder gru or transformer")
        if self.text_encoder != "transformer" and self.text_heads != fields["text_heads"].default:
            raise ValueError("text_heads: only text_encoder transformer has attention heads")
        if self.text_encoder in ("bigru", "bert"):
            reason = f"text_encoder {self.text_encoder} has sizes of its own"
            self._demand_defaults(("text_layers", "text_hidden"), reason)
            check_caption_tower(self, "bigru")
        else:
            only = ("embedding_dropout", "bidirectional", "text_pooling", "text_tokens")
            self._demand_defaults((*only, "text_model", "text_projection"), "it belongs to text_encoder bigru and bert")
        if self.text_encoder == "transformer" and self.word_dim % self.text_heads:
            raise ValueError(f"text_heads: {self.text_heads} does not divide word_dim {self.word_dim}")
        return self


class RegionsBackbone(CaptionTowerSection):
    """Precomputed regions (`data.source: regions`), and a GRU or BERT."""

    kind: Literal["regions"] = "regions"
    region_dim: PositiveInt = Field(2048, description="width of the precomputed features")
    image_encoder: Literal["none", "linear", "mlp", "residual"] = Field(
        "mlp", description="of regions: linear (SCAN, SGRAF), with an MLP beside it (VSE-infinity) or behind it (DivE)"
    )
    norm_padding: bool = Field(False, description="batch norm of the MLP counts padded regions, too (as released)")
    pooling: Literal["mean", "max", "gpo", "attention"] = Field("gpo", description="of regions to the photo's vector")
    global_dim: PositiveInt | None = Field(
        None, description="width of another model's vectors (data.global_vectors), which stand in place of pooled ones"
    )
    region_drop: Probability = Field(0.0, description="share of regions left out in training (published: 0.2)")
    region_erase: Probability = Field(
        0.0, description="share of regions overwritten with a tiny constant in training (SAF, SGR: 0.2)"
    )
    region_dropout: Probability = Field(0.0, description="dropout on encoded regions")
    text_encoder: Literal["gru", "bert"] = "gru"
    vocabulary: str | None = Field(
        None, description="published vocabulary (.json, .pkl) of text_encoder gru; default: made of training captions"
    )
    word_corruption: Probability = Field(
        0.0, description="share of words masked, replaced or deleted in training (published: 0.2)"
    )
    corrupt_ends: bool = Field(False, description="start and end tokens, too (as CRCL's program)")
    mask_token_id: int | None = Field(None, description="filled in by the program: the token of masked words")

    @model_validator(mode="after")
    def _fits_regions(self):
        for option in ("freeze_image", "freeze_image_blocks", "freeze_text", "lora"):
            if getattr(self, option):
                raise ValueError(f"{option}: the towers of regions start from random weights and have to train")
        if self.freeze_text_blocks and self.text_encoder == "gru":
            raise ValueError("freeze_text_blocks: a GRU starts from random weights; text_encoder bert has blocks")
        if self.word_dropout:
            raise ValueError("word_dropout: regions corrupt words the published way; use word_corruption")
        check_caption_tower(self, "gru")
        if self.text_encoder == "bert":
            self._demand_defaults(("vocabulary", "min_word_count"), "BERT brings its own words")
        if self.vocabulary is not None:
            self._demand_defaults(("min_word_count",), "vocabulary says which words there are")
        if not self.word_corruption:
            self._demand_defaults(("corrupt_ends",), "without word_corruption it does nothing")
        if self.image_encoder in ("none", "linear"):
            self._demand_defaults(("norm_padding",), "only image_encoder mlp and residual have a batch norm")
        if self.global_dim is not None:
            self._demand_defaults(("pooling", "text_pooling"), "with global_dim nothing is pooled")
        elif self.image_encoder == "none" and self.embed_dim != self.region_dim:
            raise ValueError(
                f"image_encoder none leaves regions of width {self.region_dim}, and captions have embed_dim "
                f"{self.embed_dim}: make them equal, choose another image_encoder, or set global_dim"
            )
        return self


def check_caption_tower(section: CaptionTowerSection, gru: str) -> None:
    """ValueError for options of one caption tower with the other; `gru` is how the kind calls the GRU."""
    if section.text_encoder == "bert":
        only = ("word_dim", "embedding_dropout", "bidirectional", "text_tokens")
        section._demand_defaults(only, f"it belongs to text_encoder {gru}")
        if section.text_pooling == "last":
            raise ValueError(f"text_pooling last: final states are those of text_encoder {gru}; BERT has first")
        if not section.text_projection and getattr(section, "global_dim", None) is None:
            raise ValueError("text_projection false leaves BERT's width to pooled captions: set global_dim")
    else:
        section._demand_defaults(("text_model", "text_projection"), "it belongs to text_encoder bert")
        if section.text_pooling == "first":
            raise ValueError("text_pooling first: the first token is one of text_encoder bert; a GRU has last")


BackboneConfig = Annotated[
    OpenClipBackbone | TransformersBackbone | BertVitBackbone | TimmWordsBackbone | RegionsBackbone,
    Field(discriminator="kind"),
]


def random_part(backbone) -> str | None:
    """What has random weights before training, as far as the recipe tells."""
    match backbone.kind:
        case "timm-words":
            return "the projections" if backbone.text_encoder == "bert" else "the text tower"
        case "regions":
            return "all but BERT" if backbone.text_encoder == "bert" else "all"
        case "bert-vit":
            return "the projection into the common space"
        case "transformers" if backbone.from_scratch:
            return "all"
        case "open_clip" if not backbone.pretrained and not backbone.model.startswith(("hf-hub:", "local-dir:")):
            return "the text tower" if backbone.image_weights else "all"
    return None
