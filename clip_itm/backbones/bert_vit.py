"""A text model and a vision model that were not trained together, by default BERT and ViT."""

from dataclasses import replace

import torch
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)

from clip_itm.backbones.base import Backbone
from clip_itm.backbones.blocks import Block, longest_list, partition
from clip_itm.backbones.configuration import BertVitBackbone
from clip_itm.backbones.features import Features
from clip_itm.backbones.huggingface import (
    as_dict,
    context_length,
    load_config,
    load_tokenizer,
    patches,
    set_checkpointing,
    token_width,
)
from clip_itm.loading import loading
from clip_itm.processing import ItmProcessor


class BertVit(Backbone):
    """Trunks: pooled features of the two models. Necks: dropout and the new linear projections to [B, D]."""

    def __init__(self, config: BertVitBackbone, model: VisionTextDualEncoderModel):
        super().__init__(config)
        self.embed_dim = config.embed_dim
        del model.logit_scale
        self.model = model
        self.token_widths = token_width(model.config.vision_config), token_width(model.config.text_config)

    def image_trunk(self, pixel_values: Tensor) -> Features:
        """Images [P, 3, H, W] to what the vision model pools, and patch tokens if asked for."""
        output = self.model.vision_model(pixel_values=pixel_values)
        hidden = output.last_hidden_state
        pooled = _pooled(output).flatten(1)
        return Features(
            pooled, patches(hidden, pixel_values, self.model.config.vision_config) if self.output_tokens else None
        )

    def image_neck(self, features: Features) -> Features:
        """Dropout, and the projection of pooled features to [P, D]."""
        features = features.apply(self.image_dropout)
        return replace(features, pooled=self.model.visual_projection(features.pooled))

    def text_trunk(self, input_ids: Tensor, attention_mask: Tensor) -> Features:
        """Captions [B, T] to what the text model pools, and word tokens if asked for."""
        mask = self.words(input_ids, attention_mask) if self.output_tokens else None
        hidden_words = self.drop_words(input_ids, attention_mask)
        output = self.model.text_model(input_ids=hidden_words, attention_mask=attention_mask)
        return Features(_pooled(output), output.last_hidden_state if self.output_tokens else None, mask)

    def text_neck(self, features: Features) -> Features:
        """Dropout, and the projection of pooled features to [B, D]."""
        features = features.apply(self.text_dropout)
        return replace(features, pooled=self.model.text_projection(features.pooled))

    def image_blocks(self) -> list[Block]:
        return partition(self.model.vision_model, longest_list(self.model.vision_model))

    def text_blocks(self) -> list[Block]:
        return partition(self.model.text_model, longest_list(self.model.text_model))

    def set_activation_checkpointing(self, enabled: bool) -> None:
        for tower in (self.model.vision_model, self.model.text_model):
            set_checkpointing(tower, enabled)


def build(config: BertVitBackbone, weights: bool) -> BertVit:
    """See `build_backbone`."""
    if weights:
        vision, text = _load(config.vision_model), _load(config.text_model)
        for tower, name in ((vision, config.vision_model), (text, config.text_model)):
            if not hasattr(tower.config, "hidden_size"):
                raise ValueError(f"{name}: {type(tower).__name__} is no single transformer tower; bert-vit needs one")
        model_config = VisionTextDualEncoderConfig.from_vision_text_configs(
            vision.config, text.config, projection_dim=config.embed_dim
        )
        model = VisionTextDualEncoderModel(model_config, vision_model=vision, text_model=text)
    else:
        content = config.model_config_dict or {
            "vision_config": as_dict(load_config(config.vision_model)),
            "text_config": as_dict(load_config(config.text_model)),
            "projection_dim": config.embed_dim,
        }
        model = VisionTextDualEncoderModel(VisionTextDualEncoderConfig(**content))
    return BertVit(config.model_copy(update={"model_config_dict": as_dict(model.config)}), model)


def processor(config: BertVitBackbone, captions: list[str] | None = None) -> ItmProcessor:
    """See `build_processor`."""
    with loading(config.vision_model):
        images = AutoImageProcessor.from_pretrained(config.vision_model)
    tokenizer = load_tokenizer(config.text_model)
    length = context_length(tokenizer, load_config(config.text_model))
    return ItmProcessor(images, tokenizer, max_length=length, images_as="transformers")


def _load(name: str):
    with loading(name):
        return AutoModel.from_pretrained(name, dtype=torch.float32)


def _pooled(output) -> Tensor:
    """What the model pools itself, or else its first token."""
    pooled = getattr(output, "pooler_output", None)
    return output.last_hidden_state[:, 0] if pooled is None else pooled
