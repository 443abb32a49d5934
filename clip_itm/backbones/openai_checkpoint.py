"""Released CLIP and NPC checkpoints: files of `torch.save` with the weights under OpenAI's names.

No such file says which architecture it holds; it is read off the shapes of the weights. open_clip has a function for
that, too (`build_model_from_openai_state_dict`), but it rounds every weight to float16 on the way.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
from torch import Tensor

from clip_itm.backbones.build import build_backbone
from clip_itm.backbones.configuration import OpenClipBackbone
from clip_itm.backbones.openclip import OpenClip
from clip_itm.backbones.torch_file import read_torch_file, unwrapped

HEAD_WIDTH = 64  # of every attention layer in every released CLIP; no weight shows it
BUFFERS = ("input_resolution", "context_length", "vocab_size")  # numbers among the weights of OpenAI's files


@dataclass(frozen=True)
class OpenAICheckpoint:
    """Weights under OpenAI's names, without DistributedDataParallel's prefix, and what the file says about them."""

    path: Path
    state: dict[str, Tensor]
    epoch: int | None
    name: str | None


def read_checkpoint(path: str | Path) -> OpenAICheckpoint:
    """Read `{epoch, name, state_dict, optimizer}` (docs/papers/npc.md 9) or a plain state dict; nothing is executed.

    Raises `ValueError` for a file that holds more than weights, and for weights that are not those of a CLIP.
    """
    path = Path(path)
    content = read_torch_file(path)
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise ValueError(f"{path}: expected a state dict, or a dictionary that has one as state_dict")
    state = {key: value for key, value in unwrapped(state).items() if isinstance(value, Tensor) and key not in BUFFERS}
    if "visual.conv1.weight" not in state or "token_embedding.weight" not in state:
        found = ", ".join(map(str, list(state)[:4])) or "nothing"
        raise ValueError(
            f"{path}: no CLIP under OpenAI's names in it; expected weights such as visual.conv1.weight and "
            f"token_embedding.weight, found {found}"
        )
    epoch, name = (None, None) if "state_dict" not in content else (content.get("epoch"), content.get("name"))
    return OpenAICheckpoint(
        path, state, epoch if isinstance(epoch, int) else None, name if isinstance(name, str) else None
    )


def openclip_config(checkpoint: OpenAICheckpoint, text_heads: int | None = None) -> dict[str, Any]:
    """open_clip's model configuration (`embed_dim`, `vision_cfg`, `text_cfg`), from the shapes of the weights.

    `text_heads`: attention heads of the text tower (default: width / 64). Raises `ValueError` if a weight is missing or
    has a shape that no CLIP has.
    """
    state = checkpoint.state
    try:
        vision = _resnet(state) if "visual.layer1.0.conv1.weight" in state else _vit(state)
        vocab_size, width = state["token_embedding.weight"].shape
        text = {
            "context_length": len(state["positional_embedding"]),
            "vocab_size": vocab_size,
            "width": width,
            "heads": _heads(width, "text", text_heads),
            "layers": _count(state, "transformer.resblocks."),
        }
        embed_dim = state["text_projection"].shape[1]
    except KeyError as error:
        raise ValueError(f"{checkpoint.path}: the weight {error.args[0]} of CLIP is missing") from None
    except (IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{checkpoint.path}: these shapes do not tell a CLIP: {error}") from None
    # OpenAI's program and those built on it know QuickGELU only; no weight would show another activation
    return {"embed_dim": embed_dim, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}


def _vit(state: dict[str, Tensor]) -> dict[str, Any]:
    width, _, patch_size, _ = state["visual.conv1.weight"].shape
    _heads(width, "image")
    return {
        "image_size": patch_size * _side(state["visual.positional_embedding"]),
        "layers": _count(state, "visual.transformer.resblocks."),
        "width": width,
        "patch_size": patch_size,
    }


def _resnet(state: dict[str, Tensor]) -> dict[str, Any]:
    return {
        "image_size": 32 * _side(state["visual.attnpool.positional_embedding"]),
        "layers": [_count(state, f"visual.layer{stage}.") for stage in (1, 2, 3, 4)],
        "width": len(state["visual.layer1.0.conv1.weight"]),
        "patch_size": None,
    }


def _side(positions: Tensor) -> int:
    """Side of the square grid that has these positions [1 + side * side, C]."""
    side = math.isqrt(len(positions) - 1)
    if side * side != len(positions) - 1:
        raise ValueError(f"{len(positions) - 1} image positions are no square")
    return side


def _heads(width: int, tower: str, heads: int | None = None) -> int:
    if heads is None and width % HEAD_WIDTH:
        advice = "; name them with --text-heads" if tower == "text" else ""
        raise ValueError(
            f"width {width} of the {tower} tower is no multiple of {HEAD_WIDTH}, so its heads are unknown{advice}"
        )
    heads = width // HEAD_WIDTH if heads is None else heads
    if heads < 1 or width % heads:
        raise ValueError(f"width {width} of the {tower} tower cannot be divided among {heads} heads")
    return heads


def _count(state: dict[str, Tensor], prefix: str) -> int:
    return len({key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)})


def openclip_name(config: dict[str, Any]) -> str | None:
    """open_clip's name of a model that OpenAI released (`ViT-B-32-quickgelu`); None for any other."""
    released = open_clip.list_pretrained_models_by_tag("openai")
    return next((name for name in released if open_clip.get_model_config(name) == config), None)


def tower_name(config: dict[str, Any]) -> str:
    """One line on an open_clip configuration made by `openclip_config`."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    kind = "ResNet" if vision["patch_size"] is None else f"ViT with patches of {vision['patch_size']}"
    return (
        f"{kind}, width {vision['width']}, layers {vision['layers']}, photos of {vision['image_size']} pixels; "
        f"text of width {text['width']}, layers {text['layers']}, heads {text['heads']}, context "
        f"{text['context_length']}, {text['vocab_size']} tokens; embeddings of {config['embed_dim']}; QuickGELU"
    )


def load_backbone(checkpoint: OpenAICheckpoint, text_heads: int | None = None) -> OpenClip:
    """Towers in float32 with the checkpoint's weights and temperature, whatever precision it was saved in.

    `backbone.config` holds the whole architecture. Raises `ValueError` if a weight is missing, has another shape, or
    does not belong to a CLIP.
    """
    config = openclip_config(checkpoint, text_heads)
    section = OpenClipBackbone(model=openclip_name(config) or "CLIP", model_config_dict={"model_cfg": config})
    backbone = build_backbone(section, weights=False)
    state = dict(checkpoint.state)
    scale = state.pop("logit_scale", None)
    if scale is None or scale.numel() != 1:
        raise ValueError(f"{checkpoint.path}: the weight logit_scale of CLIP (one number) is missing")
    try:
        backbone.model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{checkpoint.path}: these weights are no {tower_name(config)}: {error}") from None
    backbone.initial_logit_scale = scale.item()
    return backbone
