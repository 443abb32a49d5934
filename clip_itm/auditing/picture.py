"""The most suspicious pairs of an audit as one picture."""

import io
from pathlib import Path
from textwrap import fill

import numpy as np
from PIL import Image

from clip_itm.auditing.table import Audit
from clip_itm.data.images import thumbnail
from clip_itm.files import replacing
from clip_itm.visible import visible

COLUMNS, SIDE = 4, 224  # photos in a row, and their pixels


def draw_audit(audit: Audit, file: Path, pairs: int = 12) -> int:
    """Draw the `pairs` most suspicious pairs, worst first: photo, caption, and how likely the caption is right.

    Writes a PNG. If the truth is known, captions that are really wrong have a red frame, right ones a green one.
    Returns how many were drawn; 0, and no file is written, if no caption is doubted. Raises ValueError without
    matplotlib, and for regions, which have no photos.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("pictures need matplotlib: pip install 'clip-itm[plot]'") from None
    if not len(audit.photos):
        raise ValueError(f"{audit.title}: there are no photos to draw: the data are regions")
    worst = audit.clean.order()[: min(pairs, audit.doubted)]
    if not len(worst):
        return 0
    rows = -(-len(worst) // COLUMNS)
    with rc_context({"text.parse_math": False}):  # dollars in captions are dollars
        figure = Figure(figsize=(2.6 * COLUMNS, 3.1 * rows + 0.4), layout="constrained")
        figure.suptitle(visible(f"wrong captions: {audit.sentence}"), fontsize=11)
        axes = figure.subplots(rows, COLUMNS, squeeze=False).flat
        for axis, pair in zip(axes, worst, strict=False):
            _draw_pair(axis, audit, int(pair))
        for axis in list(figure.axes)[len(worst) :]:
            axis.axis("off")
        with replacing(file) as temporary:
            figure.savefig(temporary, dpi=110)
    return len(worst)


def _draw_pair(axis, audit: Audit, pair: int) -> None:
    jpeg = thumbnail(audit.photos.row(int(audit.split.pairs.image[pair]))["image"], SIDE)
    if jpeg is not None:
        axis.imshow(np.asarray(Image.open(io.BytesIO(jpeg))))
    axis.set(xticks=[], yticks=[])
    axis.set_title(f"right: {audit.clean.values[pair]:.0%} likely", fontsize=9)
    axis.set_xlabel(fill(visible(audit.captions[pair])[:150], 34), fontsize=8)
    if audit.known_wrong is not None:
        for side in axis.spines.values():
            side.set_color("tab:red" if audit.known_wrong[pair] else "tab:green")
            side.set_linewidth(3)
