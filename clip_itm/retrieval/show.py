"""Answers of a search as a standalone page, and as one picture."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from clip_itm.data.images import small_jpeg
from clip_itm.files import replacing
from clip_itm.pages import escaped, image_element
from clip_itm.retrieval.items import Hit, Item
from clip_itm.retrieval.photos import modality_of, read_photo
from clip_itm.visible import visible

SIDE = 224  # longer side of a photo, pixels
LINE = 18  # height of a line of text in the picture

STYLE = """
:root { color-scheme: light dark; --page: #f4f5f7; --card: #fff; --text: #1b1f24; --quiet: #59636e; --line: #d5dae0; }
@media (prefers-color-scheme: dark) { :root { --page: #14171a; --card: #1f2328; --text: #e8eaed; --quiet: #a3adb8;
  --line: #3a4149; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 0 16px 32px; max-width: 1500px; background: var(--page); color: var(--text);
  font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.2rem; color: var(--quiet); font-weight: 500; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 28px 0 8px; overflow-wrap: anywhere; }
ol { list-style: none; margin: 0; padding: 0; display: grid; gap: 12px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 190px), 1fr)); }
ol.texts { grid-template-columns: 1fr; gap: 6px; }
li { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 8px; min-width: 0; }
img, .gone { width: 100%; height: 170px; object-fit: contain; border-radius: 6px; }
h2 img { width: 224px; height: auto; display: block; }
.gone { display: grid; place-items: center; color: var(--quiet); background: var(--page); }
p { margin: 4px 0 0; overflow-wrap: anywhere; font-size: .88rem; }
.figures { color: var(--quiet); }
"""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
{answers}
</body>
</html>
"""


@dataclass(frozen=True)
class Answer:
    """A query (text, or path or URL of a photo) and what was found for it."""

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
    def query_photo(self) -> Image.Image | None:
        return read_photo(self.query) if modality_of(self.query) == "image" else None

    @property
    def has_photos(self) -> bool:
        return any(hit.item.caption is None for hit in self.hits)


def photo_of(item: Item) -> Image.Image | None:
    """The photo of an item; None where it cannot be read any more."""
    try:
        if item.path is not None and Path(item.path).is_file():
            return read_photo(item.path)
        return None if item.thumbnail is None else Image.open(BytesIO(item.thumbnail)).convert("RGB")
    except ValueError:
        return None


def results_page(answers: Sequence[Answer], title: str) -> str:
    """One HTML file: photos inside, no script, no network. What comes from the data is escaped."""
    return PAGE.format(title=escaped(title), style=STYLE, answers="\n".join(map(_section, answers)))


def _section(answer: Answer) -> str:
    photo = answer.query_photo
    heading = escaped(answer.query) if photo is None else image_element(small_jpeg(photo, SIDE), escaped(answer.query))
    cards = []
    for hit in answer.hits:
        figures = f'<p class="figures">{hit.rank} · {hit.score:.3f}</p>'
        label = escaped(answer.label(hit))
        if hit.item.caption is None:
            found = photo_of(hit.item)
            figures = image_element(None if found is None else small_jpeg(found, SIDE), label) + figures
        cards.append(f"<li>{figures}<p>{label}</p></li>")
    kind = "photos" if answer.has_photos else "texts"
    return f'<section>\n<h2>{heading}</h2>\n<ol class="{kind}">\n{"".join(cards)}\n</ol>\n</section>'


def draw_montage(answers: Sequence[Answer], file: str | Path) -> None:
    """A row per query: the query, then its photos from left to right, or its captions as lines beside the query."""
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
    photo, gap = answer.query_photo, 8
    columns = len(answer.hits) if answer.has_photos else 3
    left = 0 if photo is None else SIDE + 3 * gap
    title = [] if photo is not None else textwrap.wrap(visible(answer.query), 24 * columns)
    found = [] if answer.has_photos else answer.hits
    lines = [f"{hit.rank}   {hit.score:.3f}   {visible(answer.label(hit))}" for hit in found]
    text = [line for entry in lines for line in textwrap.wrap(entry, 30 * columns, subsequent_indent=" " * 8)]
    body = SIDE + 2 * LINE if answer.has_photos else max(len(text) * LINE, 0 if photo is None else SIDE)
    head = LINE * len(title) + gap
    row = Image.new("RGB", (left + columns * (SIDE + gap) + gap, head + body + 2 * gap), "white")
    draw = ImageDraw.Draw(row)
    for number, line in enumerate(title):
        draw.text((gap, gap + number * LINE), line, "black", ImageFont.load_default(16))
    if photo is not None:
        row.paste(ImageOps.contain(photo, (SIDE, SIDE)), (gap, head + gap))
        draw.line((left - gap, head, left - gap, head + body), "#888888")
    for number, line in enumerate(text):
        draw.text((left + gap, head + gap + number * LINE), line, "black", ImageFont.load_default(14))
    for number, hit in enumerate(answer.hits if answer.has_photos else []):
        place = left + gap + number * (SIDE + gap)
        found = photo_of(hit.item)
        shown = Image.new("RGB", (SIDE, SIDE), "#dddddd") if found is None else ImageOps.contain(found, (SIDE, SIDE))
        row.paste(shown, (place + (SIDE - shown.width) // 2, head + gap + (SIDE - shown.height) // 2))
        label = f"{hit.rank}   {hit.score:.3f}\n{textwrap.shorten(visible(answer.label(hit)), 30)}"
        draw.text((place, head + gap + SIDE + 2), label, "#444444", ImageFont.load_default(12))
    return row
