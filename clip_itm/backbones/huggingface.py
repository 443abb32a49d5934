"""Two-tower models of transformers: CLIP, SigLIP and relatives that `AutoModel` loads with image and text features."""

import json
import warnings

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from clip_itm.backbones.base import Backbone
from clip_itm.backbones.blocks import Block, longest_list, partition
from clip_itm.backbones.configuration import TransformersBackbone
from clip_itm.backbones.features import Features
from clip_itm.loading import cannot_load, loading
from clip_itm.processing import ItmProcessor

# trained on captions of full length without an attention mask
FULL_LENGTH = ("siglip", "siglip2")
# images keep their aspect ratio and come as padded patches (NaFlex)
VARIABLE_RESOLUTION = ("siglip2",)
# text towers that look backwards only, over learned positions
STRETCHABLE = ("clip",)


class Transformers(Backbone):
    """A model with `get_image_features` and `get_text_features`, without its temperature, which belongs to the head."""

    def __init__(self, config: TransformersBackbone, model: PreTrainedModel):
        super().__init__(config)
        self.embed_dim = _embed_dim(model)
        for name in ("logit_scale", "logit_bias"):
            if hasattr(model, name):
                delattr(model, name)
        self.model = model
        self.token_widths = token_width(model.config.vision_config), token_width(model.config.text_config)
        self.pads_images = model.config.model_type in VARIABLE_RESOLUTION

    def image_trunk(
        self, pixel_values: Tensor, pixel_attention_mask: Tensor | None = None, spatial_shapes: Tensor | None = None
    ) -> Features:
        if self.pads_images:
            output = self.model.get_image_features(pixel_values, pixel_attention_mask, spatial_shapes)
            if self.output_tokens and pixel_attention_mask is not None:
                return Features(output.pooler_output, output.last_hidden_state, pixel_attention_mask.bool())
            return Features(output.pooler_output)
        output = self.model.get_image_features(pixel_values=pixel_values)
        tokens = None
        if self.output_tokens:
            tokens = patches(output.last_hidden_state, pixel_values, self.model.config.vision_config)
        return Features(output.pooler_output, tokens)

    def text_trunk(self, input_ids: Tensor, attention_mask: Tensor) -> Features:
        mask = self.words(input_ids, attention_mask) if self.output_tokens else None
        output = self.model.get_text_features(
            input_ids=self.drop_words(input_ids, attention_mask),
            attention_mask=None if self.model.config.model_type in FULL_LENGTH else attention_mask,
        )
        return (
            Features(output.pooler_output, output.last_hidden_state, mask)
            if mask is not None
            else Features(output.pooler_output)
        )

    def image_blocks(self) -> list[Block]:
        return _blocks(self.model, self.model.vision_model, "visual_projection")

    def text_blocks(self) -> list[Block]:
        return _blocks(self.model, self.model.text_model, "text_projection")

    def set_activation_checkpointing(self, enabled: bool) -> None:
        set_checkpointing(self.model, enabled)


def build(config: TransformersBackbone, weights: bool) -> Transformers:
    """See `build_backbone`."""
    weights = weights and not config.from_scratch
    model_config = _model_config(config)
    # float32 whatever the checkpoint was saved in: training keeps float32 weights
    if weights:
        with loading(config.model):
            model = AutoModel.from_pretrained(config.model, revision=config.revision, dtype=torch.float32)
        if config.context_length is not None:
            model = _stretched(model, model_config, config.model)
    else:
        try:
            model = AutoModel.from_config(model_config, dtype=torch.float32)
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(cannot_load(config.model, error)) from error
    scale, bias = getattr(model, "logit_scale", None), getattr(model, "logit_bias", None)
    backbone = Transformers(config.model_copy(update={"model_config_dict": as_dict(model.config)}), model)
    if weights:
        backbone.initial_logit_scale = None if scale is None else scale.item()
        backbone.initial_logit_bias = None if bias is None else bias.item()
    return backbone


def _stretched(model: PreTrainedModel, longer: PreTrainedConfig, name: str) -> PreTrainedModel:
    """The model of the configuration `longer`, which has more text positions, with the weights of `model`."""
    from clip_itm.backbones.positions import notice, stretched  # in no checkpoint

    state, key = model.state_dict(), "text_model.embeddings.position_embedding.weight"
    length = longer.text_config.max_position_embeddings
    warnings.warn(notice(name, len(state[key]), length), stacklevel=3)
    state[key] = stretched(state[key], length)
    model = AutoModel.from_config(longer, dtype=torch.float32)
    model.load_state_dict(state)
    return model


def _with_context_length(model_config: PreTrainedConfig, config: TransformersBackbone) -> PreTrainedConfig:
    """The configuration with the section's number of text positions. Raises ValueError if none can be stretched."""
    from clip_itm.backbones.positions import stretched  # in no checkpoint

    if model_config.model_type not in STRETCHABLE:
        raise ValueError(
            f"backbone.context_length: the text tower of {config.model} ({model_config.model_type}) has no learned "
            "positions that could be stretched, or reads every caption at one length; leave it out, or choose a CLIP "
            "such as openai/clip-vit-base-patch32"
        )
    text = model_config.text_config
    stretched(torch.zeros(text.max_position_embeddings, 1), config.context_length)  # raises for a wrong length
    text.max_position_embeddings = config.context_length
    return model_config


def processor(config: TransformersBackbone, captions: list[str] | None = None) -> ItmProcessor:
    """See `build_processor`."""
    model_config = _model_config(config)
    with loading(config.model):
        images = AutoImageProcessor.from_pretrained(config.model, revision=config.revision)
    if config.max_num_patches is not None:
        if model_config.model_type not in VARIABLE_RESOLUTION:
            raise ValueError(
                f"backbone.max_num_patches: {config.model} reads photos of one size; the key belongs to SigLIP 2 of "
                "variable resolution (NaFlex), leave it out"
            )
        images.max_num_patches = config.max_num_patches
    tokenizer = load_tokenizer(config.model, config.revision)
    text = getattr(model_config, "text_config", model_config)
    if config.context_length is not None:
        tokenizer.model_max_length = config.context_length
    return ItmProcessor(
        images,
        tokenizer,
        max_length=context_length(tokenizer, text),
        pad_to_max_length=model_config.model_type in FULL_LENGTH,
        images_as="transformers",
    )


def load_tokenizer(name: str, revision: str | None = None):
    with loading(name):
        return AutoTokenizer.from_pretrained(name, revision=revision)


def context_length(tokenizer, text_config: PreTrainedConfig) -> int:
    """Longest caption in tokens: what tokenizer and positions both allow (a tokenizer without limit says 1e30)."""
    return int(min(tokenizer.model_max_length, getattr(text_config, "max_position_embeddings", 512)))


def load_config(name: str) -> PreTrainedConfig:
    with loading(name):
        return AutoConfig.from_pretrained(name)


def as_dict(model_config: PreTrainedConfig) -> dict:
    """A configuration as plain JSON values, without the place it was loaded from."""
    content = json.loads(model_config.to_json_string(use_diff=False))
    content.pop("_name_or_path", None)
    return content


def patches(hidden: Tensor, pixel_values: Tensor, vision_config: PreTrainedConfig) -> Tensor:
    """Last-layer tokens as patch tokens [B, T, C]: class and register tokens, which come first, are left out."""
    if hidden.ndim == 4:
        return hidden.flatten(2).transpose(1, 2)
    side = getattr(vision_config, "patch_size", None)
    if not isinstance(side, int):
        return hidden
    height, width = pixel_values.shape[-2:]
    return hidden[:, hidden.shape[1] - (height // side) * (width // side) :]


def token_width(config: PreTrainedConfig) -> int:
    """Width C of last-layer tokens (of a convolutional model: channels of its last stage)."""
    sizes = getattr(config, "hidden_sizes", None)
    return sizes[-1] if sizes else config.hidden_size


def set_checkpointing(model: PreTrainedModel, enabled: bool) -> None:
    # under its new name, or, before transformers 5.23, the old one; raises ValueError for a model that cannot
    name = "activation_checkpointing" if hasattr(model, "activation_checkpointing_enable") else "gradient_checkpointing"
    getattr(model, f"{name}_enable" if enabled else f"{name}_disable")()


def _model_config(config: TransformersBackbone) -> PreTrainedConfig:
    if config.model_config_dict is not None:
        content = dict(config.model_config_dict)
        model_config = AutoConfig.for_model(content.pop("model_type"), **content)
    else:
        with loading(config.model):
            model_config = AutoConfig.from_pretrained(config.model, revision=config.revision)
        if config.context_length is not None:
            return _with_context_length(model_config, config)
    return model_config


def _embed_dim(model: PreTrainedModel) -> int:
    missing = [
        n for n in ("get_image_features", "get_text_features", "vision_model", "text_model") if not hasattr(model, n)
    ]
    if missing:
        raise ValueError(
            f"{type(model).__name__} is no two-tower model (it has no {', '.join(missing)}): use CLIP or SigLIP"
        )
    if hasattr(model, "text_projection"):
        return model.text_projection.out_features
    return getattr(model.config.text_config, "projection_size", None) or model.config.text_config.hidden_size


def _blocks(model: nn.Module, tower: nn.Module, projection: str) -> list[Block]:
    blocks = partition(tower, longest_list(tower))
    if hasattr(model, projection):
        blocks[-1].append(getattr(model, projection))
    return blocks
