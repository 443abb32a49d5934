"""The weights of CLIP's ViT under two sets of names: those of open_clip (and OpenAI) and `transformers.CLIPModel`."""

import re
from dataclasses import asdict
from typing import Any

import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from torch import Tensor
from transformers import CLIPConfig, PreTrainedConfig

from clip_itm.backbones.openclip_source import openai_tokenizer

EPSILON = 1e-5  # of every LayerNorm in open_clip
# what both have, under whatever name, or what only training reads
SHARED_VISION = {"layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "patch_dropout"}
SHARED_TEXT = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}

# (open_clip, transformers), as beginnings of names; the first match counts
TOWERS = (
    ("visual.transformer.resblocks.", "vision_model.encoder.layers."),
    ("visual.class_embedding", "vision_model.embeddings.class_embedding"),
    ("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    ("visual.conv1.", "vision_model.embeddings.patch_embedding."),
    ("visual.ln_pre.", "vision_model.pre_layrnorm."),
    ("visual.ln_post.", "vision_model.post_layernorm."),
    ("visual.proj", "visual_projection.weight"),
    ("transformer.resblocks.", "text_model.encoder.layers."),
    ("token_embedding.", "text_model.embeddings.token_embedding."),
    ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
    ("ln_final.", "text_model.final_layer_norm."),
    ("text_projection", "text_projection.weight"),
)
LAYER = (
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
    (".attn.out_proj.", ".self_attn.out_proj."),
)
PROJECTIONS = {"visual.proj", "text_projection"}  # matrices in open_clip, linear layers in transformers


def to_huggingface(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of `CLIPModel` from those of an open_clip ViT; neither includes the temperature."""
    result = {}
    for name, value in state.items():
        name = name.removeprefix("text.")
        new = _renamed(name, TOWERS, LAYER)
        if match := re.fullmatch(r"(.+)\.attn\.in_proj_(weight|bias)", new):
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                result[f"{match[1]}.self_attn.{letter}_proj.{match[2]}"] = part
        else:
            result[new] = value.T if name in PROJECTIONS else value
    return result


def to_open_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `to_huggingface`."""
    result = {}
    towers, layer = ([(new, old) for old, new in table] for table in (TOWERS, LAYER))
    for name, value in state.items():
        new = _renamed(name, towers, layer)
        if match := re.fullmatch(r"(.+)\.self_attn\.q_proj\.(weight|bias)", new):
            parts = [state[name.replace(".q_proj.", f".{letter}_proj.")] for letter in "qkv"]
            result[f"{match[1]}.attn.in_proj_{match[2]}"] = torch.cat(parts)
        elif not re.search(r"\.self_attn\.[kv]_proj\.", new):
            result[new] = value.T if new in PROJECTIONS else value
    return result


def _renamed(name: str, towers, layer) -> str:
    begin, replacement = next((pair for pair in towers if name.startswith(pair[0])), ("", ""))
    name = replacement + name.removeprefix(begin)
    for old, new in layer:
        name = name.replace(old, new)
    return name


def clip_config(model_cfg: dict[str, Any]) -> CLIPConfig:
    """The configuration of `CLIPModel` for an open_clip ViT. Raises ValueError for any other open_clip model."""
    vision, text = asdict(CLIPVisionCfg(**model_cfg["vision_cfg"])), asdict(CLIPTextCfg(**model_cfg["text_cfg"]))
    strange = [f"vision_cfg.{key}" for key in _strange(vision, asdict(CLIPVisionCfg()), SHARED_VISION)]
    strange += [f"text_cfg.{key}" for key in _strange(text, asdict(CLIPTextCfg()), SHARED_TEXT)]
    if not isinstance(vision["layers"], int):
        strange.append("vision_cfg.layers: a ResNet")
    if not isinstance(vision["image_size"], int):
        strange.append("vision_cfg.image_size: not square")
    if strange:
        raise ValueError(
            f"transformers has no class for these towers of open_clip ({', '.join(strange)}): CLIPModel is the plain "
            "ViT with OpenAI's text tower. --to open_clip and --to onnx can hold every open_clip model"
        )
    activation = "quick_gelu" if model_cfg.get("quick_gelu") else "gelu"
    return CLIPConfig(
        projection_dim=model_cfg["embed_dim"],
        vision_config={
            **_transformer(vision, vision["width"] // vision["head_width"], activation, model_cfg["embed_dim"]),
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
        },
        text_config={
            **_transformer(text, text["heads"], activation, model_cfg["embed_dim"]),
            "vocab_size": text["vocab_size"],
            "max_position_embeddings": text["context_length"],
            "bos_token_id": 49406,
            "eos_token_id": 49407,
            "pad_token_id": 49407,
        },
    )


def _strange(found: dict, default: dict, shared: set[str]) -> list[str]:
    return [key for key in found if key not in shared and found[key] != default[key]]


def _transformer(tower: dict, heads: int, activation: str, embed_dim: int) -> dict[str, Any]:
    return {
        "hidden_size": tower["width"],
        "intermediate_size": int(tower["width"] * tower["mlp_ratio"]),
        "num_hidden_layers": tower["layers"],
        "num_attention_heads": heads,
        "hidden_act": activation,
        "layer_norm_eps": EPSILON,
        "projection_dim": embed_dim,
    }


def model_cfg_of(config: PreTrainedConfig, tokenizer) -> dict[str, Any]:
    """open_clip's configuration of a `CLIPModel`. Raises ValueError for other models, and for another tokenizer."""
    if config.model_type != "clip":
        raise ValueError(
            f"only CLIP can be written for open_clip, and this is {config.model_type} of transformers; "
            "--to transformers and --to onnx can hold it"
        )
    vision, text = config.vision_config, config.text_config
    epsilons = {vision.layer_norm_eps, text.layer_norm_eps}
    activations = {vision.hidden_act, text.hidden_act}
    if epsilons != {EPSILON} or activations not in ({"gelu"}, {"quick_gelu"}):
        raise ValueError(
            f"open_clip has no CLIP with layer_norm_eps {epsilons} and hidden_act {activations}; expected {EPSILON:g}, "
            "and gelu or quick_gelu in both towers. --to transformers and --to onnx can hold it"
        )
    if tokenizer.get_vocab() != openai_tokenizer().get_vocab():
        raise ValueError(
            "this CLIP has a tokenizer of its own, and open_clip reads captions with OpenAI's; --to transformers and "
            "--to onnx can hold it"
        )
    return {
        "embed_dim": config.projection_dim,
        "quick_gelu": activations == {"quick_gelu"},
        "vision_cfg": {
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "layers": vision.num_hidden_layers,
            "width": vision.hidden_size,
            "head_width": vision.hidden_size // vision.num_attention_heads,
            "mlp_ratio": vision.intermediate_size / vision.hidden_size,
        },
        "text_cfg": {
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "layers": text.num_hidden_layers,
            "width": text.hidden_size,
            "heads": text.num_attention_heads,
            "mlp_ratio": text.intermediate_size / text.hidden_size,
        },
    }
