"""Low-rank adapters added into the weights that they adapt, so that towers are plain again."""

from torch import Tensor

from clip_itm.backbones.attention import LinearAttention
from clip_itm.backbones.base import Backbone
from clip_itm.backbones.build import build_backbone


def merge_lora(backbone: Backbone) -> Backbone:
    """New towers of the architecture without adapters, with W + (alpha / rank) B A where a layer had W, A and B."""
    plain = build_backbone(backbone.config.model_copy(update={"lora": None}), weights=False)
    plain.load_state_dict(_merged_state(backbone))
    plain.initial_logit_scale = backbone.initial_logit_scale
    plain.initial_logit_bias = backbone.initial_logit_bias
    return plain


def _merged_state(backbone: Backbone) -> dict[str, Tensor]:
    """The weights under the names they had before `add_lora`."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    state = {name: value for name, value in backbone.state_dict().items() if ".lora_" not in name}
    modules = dict(backbone.named_modules())
    for name, module in modules.items():
        if isinstance(module, BaseTunerLayer):
            weight = state.pop(f"{name}.base_layer.weight")
            state[f"{name}.weight"] = weight + module.get_delta_weight("default").to(weight)
    state = {name.replace(".base_layer.", "."): value for name, value in state.items()}
    for name, module in modules.items():
        if isinstance(module, LinearAttention):
            for part in ("weight", "bias"):
                state[f"{name}.in_proj_{part}"] = state.pop(f"{name}.in_proj.{part}")
    return state
