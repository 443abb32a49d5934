"""`training.compile`: the layers of both towers go through torch.compile, in place.

Layers, not whole towers: all layers of a tower share one program, which is compiled once. Its sizes are symbolic, so
that another number of photos, or another length of captions, compiles nothing again. Weights keep their names; a layer
computes the same, up to rounding.
"""

import torch
import torch._functorch.config
from torch import nn

from clip_itm.backbones.base import Backbone

PROGRAMS = 64  # per kind of layer: towers x (training, evaluation, trial weights); torch gives up after 8 of them


def compile_layers(backbone: Backbone, backend: str = "inductor") -> None:
    """Compile every layer of the towers when it is first called.

    Recurrent layers are left as they are: they are one kernel already. Raises ValueError if torch.compile does not work
    on the device of the weights.
    """
    _require_compiler(next(backbone.parameters()).device, backend)
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, PROGRAMS)
    torch._functorch.config.donated_buffer = False  # a method may go backwards through one graph twice
    for blocks in (backbone.image_blocks(), backbone.text_blocks()):
        for block in blocks[1:-1]:
            for part in block:
                if isinstance(part, nn.Module) and not isinstance(part, nn.RNNBase):
                    part.compile(dynamic=True, backend=backend)


def _require_compiler(device: torch.device, backend: str) -> None:
    try:
        torch.compile(torch.neg, backend=backend)(torch.zeros(2, device=device))
    except Exception as error:  # torch's own kinds of errors, and the compiler's
        needed = "a C++ compiler (g++)" if device.type == "cpu" else "Triton and a C compiler"
        first = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"training.compile: torch.compile does not work here ({first}); install {needed}, or leave it out"
        ) from error
