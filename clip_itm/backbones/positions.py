"""Text towers for longer captions: learned positions stretched as in Long-CLIP (arXiv 2403.15378 section 3.1)."""

import torch
from torch import Tensor

KEPT = 20  # positions that pre-training saw often; the paper leaves these as they are


def stretched(positions: Tensor, length: int) -> Tensor:
    """Positions [L, C] to [length, C]: the first `KEPT` unchanged, those after them interpolated linearly.

    The L - KEPT others are spread over length - KEPT places (77 to 248: four times as many); after the last one, their
    last difference continues, as in the released program. Raises `ValueError` unless `KEPT` + 2 <= L < length.
    """
    own = len(positions)
    if length <= own:
        raise ValueError(
            f"backbone.context_length: {length} is no more than the {own} tokens that this text tower reads anyway; "
            "leave it out"
        )
    if own < KEPT + 2:
        raise ValueError(
            f"backbone.context_length: this text tower has {own} positions, too few to be stretched beyond the first "
            f"{KEPT}; leave it out, or choose another tower"
        )
    place = KEPT + torch.arange(length - KEPT, dtype=torch.float64) * (own - KEPT) / (length - KEPT)
    below = place.long().clamp(max=own - 2)
    part = (place - below)[:, None]  # more than 1 after the last position
    exact = positions.detach().double().cpu()
    behind = exact[below] + part * (exact[below + 1] - exact[below])
    return torch.cat([positions.detach().cpu()[:KEPT], behind.to(positions.dtype)]).to(positions.device)


def notice(model: str, own: int, length: int) -> str:
    """What users have to know about such a tower."""
    return (
        f"{model}: captions of up to {length} tokens instead of {own} (backbone.context_length). The positions after "
        f"the first {KEPT} are interpolated (Long-CLIP, arXiv 2403.15378 section 3.1): captions of up to {KEPT} tokens "
        "are embedded as before; longer ones are not, until the text tower is fine-tuned on such captions"
    )
