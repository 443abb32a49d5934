"""Answers of a search as a standalone page, and as one picture."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from clip_itm.data.images import small_jpeg
from clip_itm.data.inputs import load_image, modality_of
from clip_itm.files import replacing
from clip_itm.pages import render
from clip_itm.retrieval.items import Hit, Item
from clip_itm.visible import visible

SIDE = 224  # longer side of an image, pixels
LINE = 18  # height of a line of text in the picture


@dataclass(frozen=True)
class Answer:
    """A query (text, or path or URL of an image) and what was found for it."""

    query: str
    hits: Sequence[Hit]

    @staticmethod
    def label(hit: Hit) -> str:
        return hit.item.id if hit.item.caption is None else hit.item.caption

    def as_dict(self) -> dict:
        results = [
            {
                "id": hit.item.id,
                "score": hit.score,
                "rank": hit.rank,
                "image": hit.item.path,
                "caption": hit.item.caption,
            }
            for hit in self.hits
        ]
        return {"query": self.query, "results": results}

    @property
    def query_image(self) -> Image.Image | None:
        return load_image(self.query) if modality_of(self.query) == "image" else None

    @property
    def has_images(self) -> bool:
        return any(hit.item.caption is None for hit in self.hits)


def image_of(item: Item) -> Image.Image | None:
    """The image of an item; None if it can no longer be read."""
    try:
        if item.path is not None and Path(item.path).is_file():
            return load_image(item.path)
        return None if item.thumbnail is None else Image.open(BytesIO(item.thumbnail)).convert("RGB")
    except ValueError:
        return None


def small_image(item: Item, side: int) -> bytes | None:
    """A JPEG of an item's image, its longer side at most `side` pixels; None if it can no longer be read."""
    image = image_of(item)
    return None if image is None else small_jpeg(image, side)


def results_page(answers: Sequence[Answer], title: str) -> str:
    """One HTML file with the images inside, without scripts and network."""
    shown = []
    for answer in answers:
        image = answer.query_image
        shown.append((answer.query, None if image is None else small_jpeg(image, SIDE), answer.hits))
    return render("results.html", title=title, answers=shown, thumbnail=partial(small_image, side=SIDE))


def draw_montage(answers: Sequence[Answer], file: str | Path) -> None:
    """A picture with a row per query: the query, then its images from left to right, or its captions as lines."""
    rows = [_row(answer) for answer in answers]
    width = max(row.width for row in rows)
    picture = Image.new("RGB", (width, sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        picture.paste(row, (0, top))
        top += row.height
    with replacing(file) as temporary:
        picture.save(temporary, format=None if temporary.suffix else "PNG")


def _row(answer: Answer) -> Image.Image:
    image, gap = answer.query_image, 8
    columns = len(answer.hits) if answer.has_images else 3
    left = 0 if image is None else SIDE + 3 * gap
    title = [] if image is not None else textwrap.wrap(visible(answer.query), 24 * columns)
    found = [] if answer.has_images else answer.hits
    lines = [f"{hit.rank}   {hit.score:.3f}   {visible(answer.label(hit))}" for hit in found]
    text = [line for entry in lines for line in textwrap.wrap(entry, 30 * columns, subsequent_indent=" " * 8)]
    body = SIDE + 2 * LINE if answer.has_images else max(len(text) * LINE, 0 if image is None else SIDE)
    head = LINE * len(title) + gap
    row = Image.new("RGB", (left + columns * (SIDE + gap) + gap, head + body + 2 * gap), "white")
    draw = ImageDraw.Draw(row)
    for index, line in enumerate(title):
        draw.text((gap, gap + index * LINE), line, "black", ImageFont.load_default(16))
    if image is not None:
        row.paste(ImageOps.contain(image, (SIDE, SIDE)), (gap, head + gap))
        draw.line((left - gap, head, left - gap, head + body), "#888888")
    for index, line in enumerate(text):
        draw.text((left + gap, head + gap + index * LINE), line, "black", ImageFont.load_default(14))
    for index, hit in enumerate(answer.hits if answer.has_images else []):
        x = left + gap + index * (SIDE + gap)
        found = image_of(hit.item)
        shown = Image.new("RGB", (SIDE, SIDE), "#dddddd") if found is None else ImageOps.contain(found, (SIDE, SIDE))
        row.paste(shown, (x + (SIDE - shown.width) // 2, head + gap + (SIDE - shown.height) // 2))
        label = f"{hit.rank}   {hit.score:.3f}\n{textwrap.shorten(visible(answer.label(hit)), 30)}"
        draw.text((x, head + gap + SIDE + 2), label, "#444444", ImageFont.load_default(12))
    return row
