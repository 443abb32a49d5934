"""From the `backbone:` section to towers and their processor; frozen parts and adapters."""

import torch
from torch import nn

from clip_itm.backbones.attention import LinearAttention
from clip_itm.backbones.base import Backbone
from clip_itm.backbones.blocks import modules, parameters
from clip_itm.backbones.configuration import BackboneConfig
from clip_itm.backbones.section import BackboneSection, LoraSection
from clip_itm.processing import ItmProcessor


def build_backbone(config: BackboneConfig, *, weights: bool = True, processor: ItmProcessor | None = None) -> Backbone:
    """The towers of `config`, in float32 on the CPU.

    `weights=False` makes random weights; with a resolved `config` (`backbone.config` of an earlier call) that needs
    neither network nor files. `processor` says which tokens are words (default: made here; timm-words and regions need
    the one with their vocabulary). Raises `ValueError` for a model that does not exist or cannot be loaded.
    """
    # transformers may have set the meta device around us: buffers that are in no checkpoint must be real
    with torch.device("cpu"):
        if config.special_token_ids is None:
            config = _resolve_tokens(config, processor or build_processor(config, None))
        build, _ = _kind(config)
        return build(config, weights)


def build_processor(config: BackboneConfig, captions: list[str] | None) -> ItmProcessor:
    """Image processor and tokenizer of `config`.

    `captions`: the training captions, from which timm-words and regions take their vocabulary; others need none.
    """
    _, processor = _kind(config)
    return processor(config, captions)


def freeze(backbone: Backbone, config: BackboneSection) -> None:
    """Hold towers, or their stem and lowest blocks, still: no gradients, and always in evaluation mode.

    Raises `ValueError` if a tower has fewer blocks than are to be frozen.
    """
    for tower, blocks in (("image", backbone.image_blocks()), ("text", backbone.text_blocks())):
        lowest = getattr(config, f"freeze_{tower}_blocks")
        if lowest > len(blocks) - 2:
            raise ValueError(
                f"freeze_{tower}_blocks: {lowest} is more than the {len(blocks) - 2} blocks of the {tower} tower "
                f"({config.kind}); freeze_{tower}: true freezes all of it"
            )
        frozen = blocks if getattr(config, f"freeze_{tower}") else blocks[: lowest + 1] if lowest else []
        for module in modules(frozen):
            backbone.hold_still(module)
        for parameter in parameters(frozen):
            parameter.requires_grad_(False)


def add_lora(backbone: Backbone, section: LoraSection) -> None:
    """Put low-rank adapters (Hu et al. 2021) into the blocks of every tower that is not frozen.

    All other weights of the trunks stop training; the necks train as before. In a checkpoint the adapters of a layer
    NAME are `NAME.lora_A.default.weight` and `NAME.lora_B.default.weight`, its own weights `NAME.base_layer.weight`.
    open_clip's attention gets the layers `attn.in_proj` and `attn.out_proj` (see `LinearAttention`). Raises
    `ValueError` if peft is missing or no layer has one of the names given.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ValueError("backbone.lora needs peft: pip install 'clip-itm[lora]'") from None
    towers = [backbone.image_blocks()] * (not backbone.config.freeze_image)
    towers += [backbone.text_blocks()] * (not backbone.config.freeze_text)
    layers = [layer for tower in towers for layer in modules(tower[1:-1])]
    _split_attention(layers)
    linear = {id(part) for layer in layers for part in layer.modules() if isinstance(part, nn.Linear)}
    names = {name for name, module in backbone.named_modules() if id(module) in linear}
    endings = None if section.targets is None else tuple(f".{target}" for target in section.targets)
    chosen = sorted(name for name in names if endings is None or name.endswith(endings))
    if not chosen:
        known = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in names}))
        raise ValueError(f"lora.targets: no layer is called {section.targets}; the names here end with {known}")
    trunk = [*parameters(backbone.image_blocks()), *parameters(backbone.text_blocks())]
    trained = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    adapters = LoraConfig(
        r=section.rank, lora_alpha=section.alpha, lora_dropout=section.dropout, target_modules=chosen, bias="none"
    )
    inject_adapter_in_model(adapters, backbone)
    for parameter in trained:  # peft freezes all but its adapters, the necks too
        parameter.requires_grad_(True)
    for parameter in trunk:
        parameter.requires_grad_(False)


def _split_attention(layers: list[nn.Module]) -> None:
    """Replace every `nn.MultiheadAttention` inside `layers` by linear layers with the same parameters."""
    for layer in layers:
        for module in list(layer.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.MultiheadAttention):
                    setattr(module, name, LinearAttention(child))


def _kind(config: BackboneConfig):
    """`build` and `processor` of a kind of backbone; imported late, because each brings a large library."""
    match config.kind:
        case "open_clip":
            from clip_itm.backbones.openclip import build, processor
        case "transformers":
            from clip_itm.backbones.huggingface import build, processor
        case "bert-vit":
            from clip_itm.backbones.bert_vit import build, processor
        case "timm-words":
            from clip_itm.backbones.timm_words import build, processor
        case "regions":
            from clip_itm.backbones.regions import build, processor
    return build, processor


def _resolve_tokens(config: BackboneConfig, processor: ItmProcessor) -> BackboneConfig:
    found = {"special_token_ids": processor.special_token_ids, "hidden_word_id": processor.hidden_word_id}
    if "vocab_size" in type(config).model_fields:
        found["vocab_size"] = len(processor.tokenizer)
    if "mask_token_id" in type(config).model_fields:
        found["mask_token_id"] = processor.tokenizer.mask_token_id
    return config.model_copy(update=found)
