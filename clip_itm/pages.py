"""What the standalone HTML pages share."""

import base64
from html import escape

from clip_itm.visible import visible


def escaped(text: str) -> str:
    """HTML, in an element or an attribute."""
    return escape(visible(text, kept="\n\t"))


def image_element(jpeg: bytes | None, label: str) -> str:
    """An `<img>` with the photo inside, or an empty place of class "gone"; `label` is HTML already."""
    if jpeg is None:
        return '<div class="gone">no photo</div>'
    source = f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
    return f'<img src="{source}" alt="{label}" loading="lazy" decoding="async">'


def probability(value: float) -> str:
    """HTML."""
    return f"{value:.3f}" if value >= 0.001 else "&lt; 0.001"
