"""Any timm image tower, with BERT or a small text tower from scratch: for small data, and for grids of a CNN."""

import difflib
from dataclasses import replace
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPImageProcessor

from clip_itm.backbones.base import Backbone, draw_hidden
from clip_itm.backbones.blocks import Block, partition, timm_layers
from clip_itm.backbones.caption_towers import WordGru, build_bert
from clip_itm.backbones.configuration import TimmWordsBackbone
from clip_itm.backbones.features import Features
from clip_itm.backbones.huggingface import context_length, load_config, load_tokenizer
from clip_itm.backbones.timm_towers import patch_tokens, set_timm_checkpointing
from clip_itm.backbones.words import BagTower, GruTower, TransformerTower, text_mlp, word_tokenizer
from clip_itm.processing import ItmProcessor

TOWERS = {"bag": BagTower, "gru": GruTower, "transformer": TransformerTower, "bigru": WordGru}


class TimmWords(Backbone):
    """Image trunk: pooled features [P, C] of timm. Image neck: L2 normalisation (optional), dropout, linear layer.

    Text trunk: a tower that gives [B, D]. With `text_projection: mlp`: BERT, pooled features [B, C]; the text neck is
    dropout and an MLP C - text_hidden - D.
    """

    def __init__(self, config: TimmWordsBackbone, trunk: nn.Module, projection: nn.Linear, text_tower: nn.Module):
        super().__init__(config)
        self.embed_dim = config.embed_dim
        self.image_tower = trunk
        self.image_projection = projection
        self.text_tower = text_tower
        self.text_mlp = text_mlp(text_tower.token_width, config) if config.text_projection == "mlp" else nn.Identity()
        self.token_widths = trunk.num_features, self.text_tower.token_width

    def image_trunk(self, pixel_values: Tensor) -> Features:
        """Images [P, 3, H, W] to pooled [P, C], and patch or grid tokens if asked for."""
        # convolutions on a CPU are up to twice as fast on this layout
        pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        maps = self.image_tower.forward_features(pixel_values)
        pooled = self.image_tower.forward_head(maps)
        if not self.output_tokens:
            return Features(pooled)
        return Features(pooled, patch_tokens(self.image_tower, maps, self.config.image_grid))

    def image_neck(self, features: Features) -> Features:
        """Normalisation, dropout and the projection of pooled features to [P, D]."""
        if self.config.normalize_image_features:
            features = replace(features, pooled=F.normalize(features.pooled, dim=-1))
        features = features.apply(self.image_dropout)
        return replace(features, pooled=self.image_projection(features.pooled))

    def text_trunk(self, input_ids: Tensor, attention_mask: Tensor) -> Features:
        """A hidden word is left out, not replaced: it counts neither in a sum nor in a mean."""
        mask = attention_mask.bool()
        if self.hides_words:
            mask = mask & ~draw_hidden(mask, self.config.word_dropout)
        pooled, tokens = self.text_tower(input_ids, mask)
        return Features(pooled, tokens, mask) if self.output_tokens else Features(pooled)

    def text_neck(self, features: Features) -> Features:
        """Dropout, and the MLP of pooled features if there is one: [B, D]."""
        features = features.apply(self.text_dropout)
        return replace(features, pooled=self.text_mlp(features.pooled))

    def image_blocks(self) -> list[Block]:
        return partition(self.image_tower, timm_layers(self.image_tower))

    def text_blocks(self) -> list[Block]:
        return self.text_tower.blocks()

    def set_activation_checkpointing(self, enabled: bool) -> None:
        """Switch it for the image tower and BERT: the other text towers keep hardly any activations."""
        set_timm_checkpointing(self.image_tower, enabled)
        if self.config.text_encoder == "bert":
            self.text_tower.set_checkpointing(enabled)


def build(config: TimmWordsBackbone, weights: bool) -> TimmWords:
    """See `build_backbone`."""
    name = config.image_model
    if not name.startswith(("hf-hub:", "hf_hub:", "local-dir:")) and not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=4, cutoff=0.4)
        raise ValueError(f"{name}: timm knows no such model (near: {', '.join(near)}); `timm.list_models()` has all")
    pretrained = weights and config.image_weights is None and config.image_pretrained
    try:
        trunk = timm.create_model(name, pretrained=pretrained, num_classes=0, **config.image_kwargs)
    except TypeError as error:
        raise ValueError(f"{name}: image_kwargs {config.image_kwargs} do not suit this timm model: {error}") from error
    except Exception as error:
        hint = " Without network, give backbone.image_weights, or image_pretrained: false" if pretrained else ""
        raise ValueError(f"{name}: cannot build this timm model: {error}.{hint}") from error
    if weights and config.image_weights is not None:
        from clip_itm.backbones.timm_towers import load_timm_weights  # in no checkpoint

        load_timm_weights(trunk, Path(config.image_weights))
    # before the text tower: since the first published figures, a seed gives these weights first
    projection = nn.Linear(getattr(trunk, "head_hidden_size", None) or trunk.num_features, config.embed_dim)
    if config.text_encoder == "bert":
        config, text_tower = build_bert(config, weights)
    else:
        text_tower = TOWERS[config.text_encoder](config)
    return TimmWords(config, trunk, projection, text_tower)


def processor(config: TimmWordsBackbone, captions: list[str] | None) -> ItmProcessor:
    """See `build_processor`."""
    if captions is None and config.text_encoder != "bert":
        raise ValueError(
            "timm-words takes its vocabulary from the training captions: make the processor with "
            "build_processor(config, captions) and pass it to build_backbone, or load both from a checkpoint"
        )
    size = config.image_size
    images = CLIPImageProcessor(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_mean=list(config.image_mean),
        image_std=list(config.image_std),
    )
    if config.text_encoder == "bert":
        tokenizer = load_tokenizer(config.text_model)
        longest = min(config.max_words, context_length(tokenizer, load_config(config.text_model)))
        return ItmProcessor(images, tokenizer, max_length=longest)
    tokenizer = word_tokenizer(captions, config.min_word_count, config.max_words)
    return ItmProcessor(images, tokenizer, max_length=config.max_words)
