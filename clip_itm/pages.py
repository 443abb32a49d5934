"""HTML from the folder `templates`: whatever comes from the data is shown as text, in all of them."""

import base64
import hashlib

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from clip_itm.visible import visible


def render(template: str, /, **values) -> str:
    """The HTML (or CSS) of one of `clip_itm/templates`. Text is escaped, and its control characters become visible."""
    return ENVIRONMENT.get_template(template).render(**values)


def shown(value):
    """A value in `{{ }}` before it is escaped: control characters become visible, HTML from a template stays."""
    return visible(value, kept="\n\t") if isinstance(value, str) and not isinstance(value, Markup) else value


def probability(value: float) -> str:
    """A probability with three decimals, or "< 0.001"."""
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def data_url(jpeg: bytes) -> Markup:
    """A JPEG as the `src` of an `<img>`."""
    return Markup(f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}")


def sha256(script: str) -> str:
    """The hash by which a content security policy names a script that may run."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


ENVIRONMENT = Environment(
    loader=PackageLoader("clip_itm"),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=shown,
    trim_blocks=True,
    lstrip_blocks=True,
)
ENVIRONMENT.filters |= {"probability": probability, "data_url": data_url, "sha256": sha256}
