"""`ItmModel`: a backbone and a head behind the interface of transformers."""

import re
from dataclasses import dataclass, replace
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoProcessor, PreTrainedModel
from transformers.utils import ModelOutput

from clip_itm.backbones.build import add_lora, build_backbone, freeze
from clip_itm.backbones.configuration import BackboneConfig
from clip_itm.backbones.features import Features
from clip_itm.checksums import checked_meanwhile, recording
from clip_itm.configuration import ItmConfig
from clip_itm.loading import loading
from clip_itm.methods.build import build_head
from clip_itm.methods.configuration import HeadConfig
from clip_itm.processing import ItmProcessor


@dataclass
class ItmOutput(ModelOutput):
    """`loss` scalar or None; `image_embeds` [B or P, ...], `text_embeds` [B, ...]; `logs` of the head."""

    loss: Tensor | None = None
    image_embeds: Tensor | None = None
    text_embeds: Tensor | None = None
    logs: dict[str, Tensor] | None = None


class ItmModel(PreTrainedModel):
    """Images and captions in, embeddings and (with ids) the head's loss out.

    `ItmModel(config)` makes random weights of the configured architecture; `ItmModel.from_backbone` starts from
    pretrained towers; `from_pretrained` loads what `save_pretrained` wrote, without network.
    """

    config_class = ItmConfig
    base_model_prefix = "itm"
    main_input_name = "pixel_values"
    _no_split_modules: list[str] = []  # noqa: RUF012
    supports_gradient_checkpointing = True
    processor: ItmProcessor | None = None  # what makes its inputs, if known
    chunks: Any = None  # of the gradient cache (`training/gradient_cache.py`), while training computes a loss

    def __init__(self, config: ItmConfig, backbone: nn.Module | None = None):
        super().__init__(config)
        section = TypeAdapter(BackboneConfig).validate_python(config.backbone)
        # transformers builds models on the meta device before loading; what is in no checkpoint must be real
        with torch.device("cpu"):
            self.backbone = towers = backbone if backbone is not None else build_backbone(section, weights=False)
            if section.lora is not None:
                add_lora(self.backbone, section.lora)
            freeze(self.backbone, section)
            head = TypeAdapter(HeadConfig).validate_python(config.head or {"kind": "clip"})
            self.head = build_head(head, towers.widths, towers.initial_logit_scale, towers.initial_logit_bias)
        self.backbone.output_tokens = self.head.needs_tokens
        training_only = tuple(f"head.{part}." for part in self.head.training_only)
        self._keys_to_ignore_on_save = [name for name in self.state_dict() if name.startswith(training_only)]
        self._keys_to_ignore_on_load_missing = [re.escape(name) for name in training_only]
        self._trains = {name: parameter.requires_grad for name, parameter in self.named_parameters()}
        self._in_no_checkpoint = {name: value.clone() for name, value in self.named_non_persistent_buffers()}
        state = self.state_dict()
        self._in_no_checkpoint |= {name: state[name].clone() for name in self._keys_to_ignore_on_save}
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args, **kwargs) -> "ItmModel":
        """See `PreTrainedModel.from_pretrained`. The files of a local folder are compared with its checksums.

        Loading leaves what is in no checkpoint (open_clip's causal mask; what only training needs) with arbitrary
        content, and expects `_init_weights` to know every module that has such tensors; here they get back the values
        that they were built with. The parameters are new, too, so that what the recipe freezes is frozen again.
        """
        place = args[0] if args else kwargs.get("pretrained_model_name_or_path")
        with_info = kwargs.pop("output_loading_info", False)
        with checked_meanwhile(place, ("config.json", "model*.safetensors*", "clip_itm_*.py")), loading(place):
            model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
            require_whole(info)
        current = model.state_dict() | dict(model.named_non_persistent_buffers())
        for name, value in model._in_no_checkpoint.items():
            current[name].copy_(value)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(model._trains[name])
        return (model, info) if with_info else model

    def save_pretrained(self, save_directory, *args, **kwargs) -> None:
        """See `PreTrainedModel.save_pretrained`; `checksums.json` records what was written."""
        with recording(save_directory):
            super().save_pretrained(save_directory, *args, **kwargs)

    @classmethod
    def from_backbone(
        cls, section: BackboneConfig, head: HeadConfig | None = None, processor: ItmProcessor | None = None
    ):
        """A model whose towers carry the pretrained weights that `section` names."""
        from clip_itm.methods.clip.configuration import ClipHeadConfig  # in no checkpoint, as all of this

        backbone = build_backbone(section, weights=True, processor=processor)
        config = ItmConfig(
            backbone=backbone.config.model_dump(mode="json"),
            head=(head or ClipHeadConfig()).model_dump(mode="json"),
        )
        model = cls(config, backbone=backbone)
        model.processor = processor
        return model

    def without_lora(self) -> "ItmModel":
        """A model that computes the same with its adapters merged into the weights; this one if it has none."""
        from clip_itm.backbones.merge import merge_lora  # in no checkpoint

        if self.backbone.config.lora is None:
            return self
        backbone = merge_lora(self.backbone)
        config = ItmConfig(backbone=backbone.config.model_dump(mode="json"), head=self.config.head)
        model = type(self)(config, backbone=backbone)
        model.head.load_state_dict(self.head.state_dict())
        return model.to(self.device).train(self.training)

    def _init_weights(self, module: nn.Module) -> None:
        """Towers and heads initialise themselves when they are built."""

    def _set_gradient_checkpointing(self, enable: bool = True, gradient_checkpointing_func=None, **kwargs) -> None:
        """Called by transformers; the towers choose which layers to recompute, and how."""
        self.backbone.set_activation_checkpointing(enable)

    def features_of_images(
        self,
        pixel_values: Tensor | None = None,
        image_features: Tensor | None = None,
        image_tokens: Tensor | None = None,
        image_mask: Tensor | None = None,
        pixel_attention_mask: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
    ) -> Features:
        """Features of images [P, 3, H, W], or of what replaces them.

        That is: patches [P, T, p * p * 3] with their mask [P, T] and shapes [P, 2] (see `image_inputs`); pooled
        features [P, C] and tokens [P, T, C'] that the frozen tower made earlier; or regions. Tokens and regions have a
        mask bool [P, T] if some are padding.
        """
        if pixel_values is None:
            return self.backbone.image_neck(Features(image_features, image_tokens, image_mask))
        shapes = {} if spatial_shapes is None else {"spatial_shapes": spatial_shapes}
        if pixel_attention_mask is not None:
            shapes["pixel_attention_mask"] = pixel_attention_mask
        return self.backbone.image_neck(self.backbone.image_trunk(pixel_values, **shapes))

    def features_of_captions(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, text_features: Tensor | None = None
    ) -> Features:
        """Features of captions [B, T], or from pooled features [B, C] that the frozen tower made earlier.

        Both are given if another model provides the pooled features.
        """
        if input_ids is None:
            return self.backbone.text_neck(Features(text_features))
        trunk = self.backbone.text_trunk(input_ids, attention_mask)
        if text_features is not None:
            trunk = replace(trunk, pooled=text_features)
        return self.backbone.text_neck(trunk)

    def encode_images(self, *args, **kwargs) -> Tensor:
        """Embeddings [P, ...]; arguments: see `features_of_images`."""
        return self.head.embed_images(self.features_of_images(*args, **kwargs))

    def encode_texts(self, *args, **kwargs) -> Tensor:
        """Embeddings [B, ...]; arguments: see `features_of_captions`."""
        return self.head.embed_texts(self.features_of_captions(*args, **kwargs))

    def embed(self, pixel_values: Tensor | None = None, **others: Tensor) -> Tensor:
        """Embeddings [b, ...] float32 of one batch: towers in the type of their weights, the head in float32.

        `others`: what a processor gives besides pixels, or for captions.
        """
        if pixel_values is None:
            return self.head.embed_texts(self.features_of_captions(**others).apply(Tensor.float)).float()
        pixels = pixel_values.to(next(self.backbone.parameters()).dtype)
        return self.head.embed_images(self.features_of_images(pixels, **others).apply(Tensor.float)).float()

    def encode(self, inputs: Any, batch_size: int = 64, convert_to: str = "numpy", progress: bool | None = None):
        """Embeddings [N, ...] float32 of images or of texts (see `modality_of`), such as unit vectors [N, D].

        inputs: a list, or a single one, whose embedding then has no first axis. batch_size: how many to encode at once.
        convert_to: "numpy", or "torch" for a tensor on the CPU. progress: show a bar (default: on a terminal). Raises
        ValueError for what is neither image nor text, for both in one list, and for an image that cannot be read.

        >>> model.encode(["a red mug", "two mugs"]).shape
        (2, 512)
        """
        from clip_itm.encoding import encode  # in no checkpoint

        return encode(self, inputs, batch_size, convert_to, progress)

    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_features: Tensor | None = None,
        image_tokens: Tensor | None = None,
        image_mask: Tensor | None = None,
        text_features: Tensor | None = None,
        image_index: Tensor | None = None,
        image_ids: Tensor | None = None,
        pair_ids: Tensor | None = None,
        pair_weight: Tensor | None = None,
        caption_ids: Tensor | None = None,
        pixel_attention_mask: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
    ) -> ItmOutput:
        """One batch: P distinct images and B captions.

        `image_index` int64 [B] says which of the P images pair k shows (default: P = B, in order). With `image_ids` and
        `pair_ids` int64 [B] (numbers of the image and of the pair in the training set) the head's loss is computed;
        `pair_weight` [B] are the weights that a data set gives its pairs, `caption_ids` int64 [B] mark equal captions.
        """
        image_inputs = {"pixel_values": pixel_values, "image_features": image_features}
        image_inputs |= {"image_tokens": image_tokens, "image_mask": image_mask}
        image_inputs |= {"pixel_attention_mask": pixel_attention_mask, "spatial_shapes": spatial_shapes}
        captions = {"input_ids": input_ids, "attention_mask": attention_mask, "text_features": text_features}
        if pair_ids is None:
            return ItmOutput(
                image_embeds=self.encode_images(**image_inputs) if _any(image_inputs) else None,
                text_embeds=self.encode_texts(**captions) if _any(captions) else None,
            )
        more = {} if caption_ids is None else {"caption_ids": caption_ids}
        return self._with_loss(image_inputs, captions, image_index, image_ids, pair_ids, pair_weight, **more)

    def _with_loss(self, image_inputs: dict, captions: dict, image_index, image_ids, pair_ids, *others, **more):
        from clip_itm.training.gradient_cache import in_chunks  # in no checkpoint

        def image_outputs(**inputs):
            return self.head.image_outputs(self.features_of_images(**inputs))

        def text_outputs(**inputs):
            return self.head.text_outputs(self.features_of_captions(**inputs))

        images = in_chunks(image_outputs, image_inputs, self.chunks)
        texts = in_chunks(text_outputs, captions, self.chunks)
        if image_index is not None:
            images = _take(images, image_index)
        # similarities and softmax in float32 (or more), whatever the towers ran in
        with torch.autocast(pair_ids.device.type, enabled=False):
            loss, logs = self.head.loss(images, texts, image_ids, pair_ids, *others, **more)
        return ItmOutput(loss=loss, image_embeds=_embeddings(images), text_embeds=_embeddings(texts), logs=logs)


def require_whole(info: dict) -> None:
    """Raises ValueError if a checkpoint's weights are not those of its config.json; else some would be random."""
    missing, other = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    if missing or other:
        raise ValueError(
            f"its weights are not those that config.json describes: {len(missing)} are missing"
            + (f", such as {missing[0]}" if missing else "")
            + f", {len(other)} are of another model"
            + (f", such as {other[0]}" if other else "")
        )


def _any(inputs: dict[str, Tensor | None]) -> bool:
    return any(value is not None for value in inputs.values())


def _take(outputs: Tensor | tuple[Tensor, ...], rows: Tensor) -> Tensor | tuple[Tensor, ...]:
    """The same kind of outputs, of some rows."""
    return outputs[rows] if isinstance(outputs, Tensor) else type(outputs)(*(part[rows] for part in outputs))


def _embeddings(outputs: Tensor | tuple[Tensor, ...]) -> Tensor:
    return outputs if isinstance(outputs, Tensor) else outputs[0]


AutoConfig.register("clip_itm", ItmConfig)
AutoModel.register(ItmConfig, ItmModel)
AutoProcessor.register(ItmConfig, ItmProcessor)
