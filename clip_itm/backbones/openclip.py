"""Backbones of open_clip: ViT, ResNet and timm image towers, native and Hugging Face text towers.

A thin adapter: the modules, and so the names in a checkpoint, are open_clip's. It adds one thing: captions are padded
only to the longest of the batch. That is exact, because the towers for which this is done either look backwards only or
mask their padding.
"""

import copy
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from clip_itm.backbones.base import Backbone
from clip_itm.backbones.blocks import Block, longest_list, partition, timm_layers
from clip_itm.backbones.configuration import OpenClipBackbone
from clip_itm.backbones.features import Features
from clip_itm.backbones.huggingface import as_dict, set_checkpointing
from clip_itm.backbones.openclip_source import processor
from clip_itm.backbones.timm_towers import patch_tokens, set_timm_checkpointing

__all__ = ["OpenClip", "build", "processor"]


class OpenClip(Backbone):
    """A CLIP or CustomTextCLIP of open_clip without its temperature, which belongs to the head."""

    def __init__(self, config: OpenClipBackbone, model: nn.Module):
        super().__init__(config)
        architecture = config.model_config_dict["model_cfg"]
        self.embed_dim, self.text_cfg = architecture["embed_dim"], architecture["text_cfg"]
        del model.logit_scale
        model.logit_bias = None
        self.model = model
        self.token_widths = _image_token_width(model.visual), _text_token_width(self.text_tower)

    @property
    def text_tower(self) -> nn.Module:
        return getattr(self.model, "text", self.model)

    def image_trunk(self, pixel_values: Tensor) -> Features:
        visual = self.model.visual
        if isinstance(visual, VisionTransformer):
            visual.output_tokens = self.output_tokens
            return Features(*visual(pixel_values)) if self.output_tokens else Features(visual(pixel_values))
        if not self.output_tokens:
            return Features(visual(pixel_values))
        if isinstance(visual, TimmModel):
            maps = visual.trunk.forward_features(pixel_values)
            return Features(visual.head(visual.trunk.forward_head(maps)), patch_tokens(visual.trunk, maps))
        maps = visual.stem(pixel_values)
        for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
            maps = layer(maps)
        return Features(visual.attnpool(maps), maps.flatten(2).transpose(1, 2))

    def text_trunk(self, input_ids: Tensor, attention_mask: Tensor) -> Features:
        mask = self.words(input_ids, attention_mask) if self.output_tokens else None
        pooled, tokens = self._encode_text(self.drop_words(input_ids, attention_mask), attention_mask)
        return Features(pooled, tokens, mask) if self.output_tokens else Features(pooled)

    def _encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        tower = self.text_tower
        if isinstance(tower, HFTextEncoder):
            output = tower.transformer(input_ids=input_ids, attention_mask=attention_mask)
            return tower.proj(tower.pooler(output, attention_mask)), output.last_hidden_state
        length = input_ids.shape[1]
        tokens = tower.token_embedding(input_ids) + tower.positional_embedding[:length]
        # mask and pooling are those of the configuration: other versions of open_clip keep them elsewhere
        text = self.text_cfg
        causal = None
        if not text.get("no_causal_mask", False):
            causal = torch.full((length, length), -torch.inf, device=tokens.device).triu(1)
        tokens = tower.ln_final(tower.transformer(tokens, attn_mask=causal))
        pooled = _pooled(tokens, input_ids, text.get("pool_type", "argmax"), text.get("eos_id", 2))
        projection = tower.text_projection
        if isinstance(projection, nn.Linear):
            return projection(pooled), tokens
        return pooled if projection is None else pooled @ projection, tokens

    def image_blocks(self) -> list[Block]:
        visual = self.model.visual
        if isinstance(visual, TimmModel):
            return partition(visual, timm_layers(visual.trunk))
        if isinstance(visual, ModifiedResNet):
            return partition(visual, [visual.layer1, visual.layer2, visual.layer3, visual.layer4])
        return partition(visual, list(visual.transformer.resblocks))

    def text_blocks(self) -> list[Block]:
        tower = self.text_tower
        if tower is not self.model:
            return partition(tower, longest_list(tower))
        top = [part for part in (tower.ln_final, tower.text_projection) if part is not None]
        layers = [[layer] for layer in tower.transformer.resblocks]
        return [[tower.token_embedding, tower.positional_embedding], *layers, top]

    def set_activation_checkpointing(self, enabled: bool) -> None:
        visual, text = self.model.visual, self.text_tower
        if isinstance(visual, ModifiedResNet) and enabled:
            raise ValueError(
                "open_clip's ResNet towers have no activation checkpointing: choose a ViT, or switch it off"
            )
        if isinstance(visual, TimmModel):
            set_timm_checkpointing(visual.trunk, enabled)
        else:
            visual.set_grad_checkpointing(enabled)
        if not isinstance(text, HFTextEncoder):
            text.transformer.grad_checkpointing = enabled
        else:
            set_checkpointing(text.transformer, enabled)


def _pooled(tokens: Tensor, input_ids: Tensor, pool_type: str, end: int) -> Tensor:
    """The token [B, C] of tokens [B, T, C] that represents a caption."""
    rows = torch.arange(len(tokens), device=tokens.device)
    match pool_type:
        case "first":
            return tokens[:, 0]
        case "last":
            return tokens[:, -1]
        case "argmax":  # OpenAI's end token has the highest number
            return tokens[rows, input_ids.argmax(dim=1)]
        case "eos":
            return tokens[rows, (input_ids == end).int().argmax(dim=1)]
    raise ValueError(f"text_cfg.pool_type: expected first, last, argmax or eos, found {pool_type!r}")


def _image_token_width(visual: nn.Module) -> int:
    if isinstance(visual, TimmModel):
        return visual.trunk.num_features
    if isinstance(visual, ModifiedResNet):
        return visual.attnpool.k_proj.in_features
    return visual.transformer.width


def _text_token_width(tower: nn.Module) -> int:
    return tower.config.hidden_size if isinstance(tower, HFTextEncoder) else tower.ln_final.normalized_shape[0]


def build(config: OpenClipBackbone, weights: bool) -> OpenClip:
    """See `build_backbone`."""
    source, path = config.model_config_dict, None
    if weights or source is None:
        from clip_itm.backbones.openclip_source import find_config, find_weights, with_context_length

        path, longer = find_weights(config) if weights else None, source
        if source is None or (path is not None and config.context_length is not None):
            source = find_config(config)  # with as many positions as there are in the weights
            longer = with_context_length(source, config.context_length, config.model)
        source = longer if path is None else source
    model = _make_model(source, weights and path is None)
    scale = bias = None
    if path is not None:
        from clip_itm.reading import reading  # in no checkpoint

        with reading(path, f"weights of {config.model}", "give the weights that belong to it"):
            open_clip.load_checkpoint(model, str(path))
        scale = model.logit_scale.item()
        bias = None if model.logit_bias is None else model.logit_bias.item()
        if longer is not source:
            source, model = longer, _stretched(model, longer, config.model)
    if weights and config.image_weights is not None:
        from clip_itm.backbones.timm_towers import load_timm_weights  # in no checkpoint

        if not isinstance(model.visual, TimmModel):
            raise ValueError(f"image_weights: {config.model} has no vision_cfg.timm_model_name")
        load_timm_weights(model.visual.trunk, Path(config.image_weights))
    if isinstance(getattr(model, "text", None), HFTextEncoder) and "hf_config" not in source:
        source = {**source, "hf_config": as_dict(model.text.config)}
    backbone = OpenClip(config.model_copy(update={"model_config_dict": source}), model)
    backbone.initial_logit_scale, backbone.initial_logit_bias = scale, bias
    return backbone


def _stretched(model: nn.Module, source: dict[str, Any], name: str) -> nn.Module:
    """The model of `source`, which has more text positions, with the weights of `model`."""
    from clip_itm.backbones.positions import notice, stretched  # in no checkpoint

    state, length = model.state_dict(), source["model_cfg"]["text_cfg"]["context_length"]
    key = next(key for key in ("positional_embedding", "text.positional_embedding") if key in state)
    warnings.warn(notice(name, len(state[key]), length), stacklevel=3)
    state[key] = stretched(state[key], length)
    longer = _make_model(source, False)
    longer.load_state_dict(state)
    return longer


def _make_model(source: dict[str, Any], tower_weights: bool) -> nn.Module:
    """Build a model from its configuration. `tower_weights`: single towers may load pretrained weights of their own."""
    model_cfg = copy.deepcopy(source["model_cfg"])
    if "multimodal_cfg" in model_cfg:
        raise ValueError("CoCa models have a text decoder that would not be trained: choose a CLIP model")
    vision, text = model_cfg["vision_cfg"], model_cfg["text_cfg"]
    custom = model_cfg.pop("custom_text", False) or "hf_model_name" in text
    if text.get("embed_cls"):
        raise ValueError("text towers with embed_cls (CoCa) are not supported: choose a CLIP model")
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = tower_weights and vision.get("timm_model_pretrained", False)
    with tempfile.TemporaryDirectory() as folder:
        if "hf_model_name" in text:
            text["hf_model_pretrained"] = tower_weights and text.get("hf_model_pretrained", True)
            if "hf_config" in source:
                (Path(folder) / "config.json").write_text(json.dumps(source["hf_config"]), encoding="utf-8")
                text.update(hf_model_name=folder, hf_model_pretrained=False)
        try:
            return (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**model_cfg)
        except Exception as error:  # of a configuration that somebody wrote
            raise ValueError(f"this open_clip model cannot be built: {error}") from error
