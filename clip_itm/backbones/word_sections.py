"""`backbone:` sections of the kinds with a caption tower of their own: timm-words and regions."""

import glob
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from clip_itm.backbones.section import BackboneSection, HubPart, Probability, saved_model
from clip_itm.section import filled_in

WIDTH = "width of the common space"
Layers = Annotated[int, Field(gt=0, le=1000)]


class CaptionTowerSection(BackboneSection):
    """A caption tower with a width of its own: a GRU over words, or BERT."""

    embed_dim: PositiveInt = Field(1024, description=WIDTH)
    word_dim: PositiveInt = Field(300, description="width of word embeddings (and of the transformer)")
    embedding_dropout: Probability = Field(0.0, description="dropout on word embeddings")
    hidden_dropout: Probability = Field(0.0, description="dropout inside the text tower")
    bidirectional: bool = Field(True, description="read captions in both directions (states are averaged), or one")
    text_pooling: Literal["mean", "max", "gpo", "attention", "last", "first"] = Field(
        "mean", description="from states to a caption's vector; last: final states of a GRU; first: BERT's first token"
    )
    text_tokens: Literal["states", "words"] = Field(
        "states", description="what heads read word by word: states, or the word embeddings below a GRU (DivE)"
    )
    text_model: str = Field("bert-base-uncased", description="for text_encoder bert: name on the Hub or saved folder")
    text_projection: bool | Literal["mlp"] = Field(
        True,
        description="for text_encoder bert: a linear layer to embed_dim on its tokens; or mlp on its pooled vector, "
        "which also trains if freeze_text freezes BERT (timm-words)",
    )
    text_model_config: dict[str, Any] | None = filled_in("makes checkpoints whole")
    min_word_count: PositiveInt = Field(4, description="rarer words of the training captions are unknown")
    max_words: PositiveInt = Field(100, description="longer captions are cut")
    vocab_size: PositiveInt | None = filled_in("makes checkpoints whole")

    @property
    def base_models(self) -> list[str]:
        return [self.text_model] if self.text_encoder == "bert" else []

    def hub_parts(self) -> list[HubPart]:
        return [saved_model("text_model", self.text_model)] if self.text_encoder == "bert" else []

    @property
    def _text_name(self) -> str:
        return self.text_model if self.text_encoder == "bert" else "words"

    def _require_defaults(self, options: tuple[str, ...], reason: str) -> None:
        """Raises ValueError if an option was set that does nothing here."""
        for option in options:
            if getattr(self, option) != type(self).model_fields[option].default:
                raise ValueError(f"{option}: {reason}; leave it out")


class TimmWordsBackbone(CaptionTowerSection):
    """Any timm image tower, and a text tower: a small one from scratch over words of the training captions, or BERT."""

    kind: Literal["timm-words"] = "timm-words"
    image_model: str = Field("mobilenetv2_100", description="name of an image tower of timm")
    image_kwargs: dict[str, Any] = Field({}, description="for timm.create_model, e.g. {pad_type: same}")
    image_weights: str | None = Field(None, description="safetensors of the tower; default: timm's pretrained weights")
    image_pretrained: bool = Field(True, description="timm's pretrained weights where image_weights is not given")
    image_size: PositiveInt = Field(224, description="width and height to which photos are resized and cut")
    image_mean: tuple[float, float, float] = Field(
        (0.5, 0.5, 0.5), description="of red, green and blue, from 0 to 1: subtracted from pixels"
    )
    image_std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = Field(
        (0.5, 0.5, 0.5), description="of red, green and blue: pixels are divided by it"
    )
    image_grid: PositiveInt | None = Field(
        None, description="average the feature map to this many tokens a side, for heads that read tokens; default: all"
    )
    normalize_image_features: bool = Field(True, description="L2-normalise pooled tower features before dropout")
    embed_dim: PositiveInt = Field(256, description=WIDTH)
    text_encoder: Literal["bag", "gru", "transformer", "bigru", "bert"] = Field(
        "bag", description="gru: bidirectional layers, projected; bigru: one, averaged (called gru in kind regions)"
    )
    text_hidden: PositiveInt = Field(
        512, description="hidden width of the MLP (bag, text_projection mlp), of a GRU direction, of the feed-forward"
    )
    text_layers: Layers = Field(2, description="layers of the gru and the transformer")
    text_heads: PositiveInt = Field(4, description="attention heads of the transformer; divides word_dim")
    min_word_count: PositiveInt = Field(2, description="rarer words of the training captions become [UNK]")
    max_words: PositiveInt = Field(64, description="longer captions are cut")

    @property
    def display_names(self) -> list[str]:
        return [self.image_model, self._text_name]

    @property
    def base_models(self) -> list[str]:
        name = self.image_model
        if self.image_weights:
            image = [self.image_weights]
        elif not self.image_pretrained:
            image = []
        else:
            image = [name[len("hf-hub:") :] if name.startswith(("hf-hub:", "hf_hub:")) else f"timm:{name}"]
        return super().base_models + image

    @property
    def random_part(self) -> str:
        return "the projections" if self.text_encoder == "bert" else "the text tower"

    def hub_parts(self) -> list[HubPart]:
        parts = super().hub_parts()
        if self.image_pretrained and self.image_weights is None:
            instead = "give a safetensors file as backbone.image_weights, or set backbone.image_pretrained: false"
            repository = glob.escape(f"timm/{self.image_model}") + "*"
            parts.insert(0, HubPart("image_model", self.image_model, repository, instead, or_path=False))
        return parts

    @model_validator(mode="after")
    def _fits_timm_words(self):
        self._check_freezing()
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
            own = ("text_layers",) if self.text_projection == "mlp" else ("text_layers", "text_hidden")
            self._require_defaults(own, f"text_encoder {self.text_encoder} has sizes of its own")
            check_caption_tower(self, "bigru")
        else:
            only = ("embedding_dropout", "bidirectional", "text_pooling", "text_tokens")
            self._require_defaults(
                (*only, "text_model", "text_projection"), "it belongs to text_encoder bigru and bert"
            )
        if self.text_encoder == "transformer" and self.word_dim % self.text_heads:
            raise ValueError(f"text_heads: {self.text_heads} does not divide word_dim {self.word_dim}")
        return self

    def _check_freezing(self) -> None:
        """Raises ValueError if a frozen tower would keep random weights."""
        if self.text_encoder != "bert":
            for option in ("freeze_text", "freeze_text_blocks"):
                if getattr(self, option):
                    raise ValueError(
                        f"{option}: text_encoder {self.text_encoder} starts from random weights and has to train"
                    )
        elif self.freeze_text and self.text_projection != "mlp":
            raise ValueError(
                "freeze_text would hold the new linear layer at BERT's tokens still, too: set text_projection: mlp, "
                "which trains on top of BERT"
            )
        elif self.freeze_text and self.text_pooling in ("gpo", "attention"):
            raise ValueError(
                f"freeze_text: text_pooling {self.text_pooling} would keep random weights; choose mean, max or first"
            )


class RegionsBackbone(CaptionTowerSection):
    """Precomputed regions (`data.source: regions`), and a GRU or BERT."""

    reads_regions: ClassVar = True

    kind: Literal["regions"] = "regions"
    region_dim: PositiveInt = Field(2048, description="width of the precomputed features")
    image_encoder: Literal["none", "linear", "mlp", "residual"] = Field(
        "mlp", description="of regions: linear (SCAN, SGRAF), with an MLP in parallel (VSE-infinity) or after (DivE)"
    )
    norm_padding: bool = Field(False, description="batch norm of the MLP counts padded regions, too (as released)")
    pooling: Literal["mean", "max", "gpo", "attention"] = Field("gpo", description="from regions to a photo's vector")
    global_dim: PositiveInt | None = Field(
        None, description="width of another model's vectors (data.global_vectors), which replace the pooled ones"
    )
    region_drop: Probability = Field(0.0, description="share of regions left out in training (published: 0.2)")
    region_erase: Probability = Field(
        0.0, description="share of regions overwritten with a tiny constant in training (SAF, SGR: 0.2)"
    )
    region_dropout: Probability = Field(0.0, description="dropout on encoded regions")
    text_encoder: Literal["gru", "bert"] = Field("gru", description="a GRU over words, or BERT over word pieces")
    vocabulary: str | None = Field(
        None, description="published vocabulary (.json, .pkl) for text_encoder gru; default: from the training captions"
    )
    word_corruption: Probability = Field(
        0.0, description="share of words masked, replaced or deleted in training (published: 0.2)"
    )
    corrupt_ends: bool = Field(False, description="corrupt start and end tokens, too (as CRCL's program does)")
    mask_token_id: int | None = filled_in("the token of masked words")

    @property
    def display_names(self) -> list[str]:
        return ["regions", self._text_name]

    @property
    def random_part(self) -> str:
        return "all but BERT" if self.text_encoder == "bert" else "all"

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
        if self.text_projection == "mlp":
            raise ValueError("text_projection mlp: it belongs to timm-words; leave it out")
        if self.text_encoder == "bert":
            self._require_defaults(("vocabulary", "min_word_count"), "BERT brings its own words")
        if self.vocabulary is not None:
            self._require_defaults(("min_word_count",), "vocabulary says which words there are")
        if not self.word_corruption:
            self._require_defaults(("corrupt_ends",), "without word_corruption it does nothing")
        if self.image_encoder in ("none", "linear"):
            self._require_defaults(("norm_padding",), "only image_encoder mlp and residual have a batch norm")
        if self.global_dim is not None:
            self._require_defaults(("pooling", "text_pooling"), "with global_dim nothing is pooled")
        elif self.image_encoder == "none" and self.embed_dim != self.region_dim:
            raise ValueError(
                f"image_encoder none leaves regions of width {self.region_dim}, and captions have embed_dim "
                f"{self.embed_dim}: make them equal, choose another image_encoder, or set global_dim"
            )
        return self


def check_caption_tower(section: CaptionTowerSection, gru: str) -> None:
    """Raises ValueError for options of the other caption tower; `gru` is the name of the GRU in this kind."""
    if section.text_encoder == "bert":
        only = ("word_dim", "embedding_dropout", "bidirectional", "text_tokens")
        section._require_defaults(only, f"it belongs to text_encoder {gru}")
        if section.text_pooling == "last":
            raise ValueError(f"text_pooling last: final states are those of text_encoder {gru}; BERT has first")
        if not section.text_projection and getattr(section, "global_dim", None) is None:
            raise ValueError("text_projection false leaves BERT's width to pooled captions: set global_dim")
    else:
        section._require_defaults(("text_model", "text_projection"), "it belongs to text_encoder bert")
        if section.text_pooling == "first":
            raise ValueError("text_pooling first: the first token is one of text_encoder bert; a GRU has last")
