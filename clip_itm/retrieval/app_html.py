"""What the app writes into its page: results, heat map, cards of an audit. Everything from the data is escaped."""

from collections.abc import Iterable, Sequence
from functools import lru_cache

from torch import Tensor

from clip_itm.data.images import small_jpeg
from clip_itm.pages import escaped, image_element, probability
from clip_itm.retrieval.items import Hit, Item
from clip_itm.retrieval.show import photo_of

SIDE = 320  # longer side of a photo of the gallery, pixels
SMALL_SIDE = 112  # above the columns of the heat map
CACHED_PHOTOS = 2000  # of about 20 kB each
MARKS = (("◆", "best photo for the caption"), ("▲", "best caption for the photo"))

STYLE = """
.itm p, .itm ol { margin: 0; padding: 0; }
.itm h1 { font-size: 1.3rem; font-weight: 650; margin: 0; }
.itm-note, .itm-quiet { color: color-mix(in srgb, var(--body-text-color) 70%, transparent); }
.itm-note { padding: 4px 0 !important; }
.itm-wrong { color: #b3261e; font-weight: 600; white-space: nowrap; }
.dark .itm-wrong { color: #ff8a80; }
.itm-marks { white-space: nowrap; }
.itm-message { border: 1px solid var(--border-color-primary); border-left: 4px solid var(--color-accent);
  border-radius: 6px; padding: 10px 14px !important; overflow-wrap: anywhere; }
.itm h2 { font-size: 1.05rem; font-weight: 600; margin: 4px 0 10px; overflow-wrap: anywhere; }
.itm ol { list-style: none; display: grid; gap: 12px; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(46%, 190px), 1fr)); }
.itm ol.itm-pairs { grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)); }
.itm li { min-width: 0; padding: 8px; border: 1px solid var(--border-color-primary); border-radius: 8px;
  background: var(--block-background-fill); overflow-wrap: anywhere; font-size: .86rem; line-height: 1.4; }
.itm .itm-pairs li { display: grid; grid-template-columns: 112px 1fr; gap: 10px; }
.itm li img, .itm li .gone { width: 100%; aspect-ratio: 4 / 3; object-fit: contain; margin-bottom: 6px;
  border-radius: 4px; background: var(--background-fill-secondary); }
.itm .itm-pairs img, .itm .itm-pairs .gone { aspect-ratio: 1; margin: 0; }
.itm .gone { display: grid; place-items: center; color: var(--body-text-color-subdued);
  background: var(--neutral-300); }
.dark .itm .gone { background: var(--neutral-700); }
.itm-caption { font-weight: 600; font-size: .95rem; }
.itm table { border-collapse: collapse; width: 100%; font-size: .95rem; }
.itm th, .itm td { padding: 7px 10px; border: 1px solid var(--border-color-primary); text-align: left;
  overflow-wrap: anywhere; color: var(--body-text-color); }
.itm td.itm-number { width: 5rem; text-align: right; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
.itm thead th { overflow-wrap: normal; }
.itm-wide { overflow-x: auto; }
.itm .itm-heat { width: auto; }
.itm .itm-heat thead th, .itm .itm-heat thead td { vertical-align: bottom; border-top: 0; }
.itm .itm-heat thead td { border-left: 0; }
.itm .itm-heat th { font-weight: 500; min-width: 84px; }
.itm .itm-heat tbody th { min-width: 130px; max-width: 300px; }
.itm .itm-heat th img { display: block; max-width: 104px; max-height: 104px; margin: 0 auto; border-radius: 4px; }
.itm .itm-heat td.itm-number { text-align: center; width: auto; white-space: nowrap;
  background: color-mix(in srgb, var(--color-accent) calc(var(--heat) * 55%), transparent); }
.itm .itm-best { font-weight: 700; }
.itm-legend { padding-top: 8px !important; }
@media (max-width: 600px) { .itm th, .itm td { padding: 6px; font-size: .86rem; } .itm .itm-heat th { min-width: 62px; }
  .itm .itm-heat tbody th { min-width: 108px; } .itm .itm-heat th img { max-width: 62px; }
  .itm td.itm-number { width: 3.2rem; } .itm .itm-heat td.itm-number { white-space: normal; }
  .itm-uploads .grid-container { grid-template-columns: repeat(3, minmax(0, 1fr)) !important; }
  button[role=tab] { padding-inline: 9px !important; } }
"""


@lru_cache(CACHED_PHOTOS)
def thumbnail(item: Item) -> bytes | None:
    """A small JPEG of a photo; None where it cannot be read any more."""
    photo = photo_of(item)
    return None if photo is None else small_jpeg(photo, SIDE)


def section(content: str) -> str:
    return f'<div class="itm">{content}</div>'


def message(text: str) -> str:
    """What to do, or what was wrong."""
    return section(f'<p class="itm-message" role="status">{escaped(text)}</p>')


def header(title: str, notes: Iterable[str]) -> str:
    return section(f"<h1>{escaped(title)}</h1>" + "".join(f'<p class="itm-note">{escaped(note)}</p>' for note in notes))


def results(title: str, hits: Sequence[Hit]) -> str:
    """Photos as cards, captions as a table; rank, score, and id or caption of each."""
    if hits[0].item.caption is None:
        content = f"<ol>{''.join(map(_photo, hits))}</ol>"
    else:
        head = "<tr><th>rank</th><th>score</th><th>caption</th></tr>"
        content = f"<table><thead>{head}</thead><tbody>{''.join(map(_caption, hits))}</tbody></table>"
    return section(f"<h2>{escaped(title)}</h2>{content}")


def _photo(hit: Hit) -> str:
    name = escaped(hit.item.id)
    figures = f'<p class="itm-quiet">{hit.rank} · {hit.score:.3f}</p>'
    return f"<li>{image_element(thumbnail(hit.item), name)}{figures}<p>{name}</p></li>"


def _caption(hit: Hit) -> str:
    cells = f'<td class="itm-number">{hit.rank}</td><td class="itm-number">{hit.score:.3f}</td>'
    return f'<tr>{cells}<td title="{escaped(hit.item.id)}">{escaped(hit.item.caption)}</td></tr>'


def heat_map(photos: Sequence[tuple[str, bytes]], captions: Sequence[str], similarity: Tensor) -> str:
    """A table of `similarity` [photos, captions]: a row a caption, a column a photo (name, JPEG).

    The shade goes from the smallest to the largest number. All that share the largest number of a row or a column are
    marked.
    """
    low, high = similarity.min(), similarity.max()
    heat = (similarity - low) / (high - low if high > low else 1)
    best_photo = similarity == similarity.amax(0, keepdim=True)
    best_caption = similarity == similarity.amax(1, keepdim=True)
    columns = "".join(f'<th scope="col">{image_element(jpeg, escaped(name))}</th>' for name, jpeg in photos)
    rows = []
    for number, caption in enumerate(captions):
        cells = []
        for photo in range(len(photos)):
            marks = [MARKS[0]] * bool(best_photo[photo, number]) + [MARKS[1]] * bool(best_caption[photo, number])
            signs = " ".join(f'<span title="{title}">{sign}</span>' for sign, title in marks)
            shown = f'<span class="itm-marks">{signs}</span>'
            kind = "itm-number itm-best" if marks else "itm-number"
            shade = f"--heat: {heat[photo, number]:.3f}"
            cells.append(f'<td class="{kind}" style="{shade}">{similarity[photo, number]:.3f} {shown}</td>')
        rows.append(f'<tr><th scope="row">{escaped(caption)}</th>{"".join(cells)}</tr>')
    legend = ", ".join(f"{sign} {title}" for sign, title in MARKS)
    table = f"<thead><tr><td></td>{columns}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return section(
        f'<div class="itm-wide"><table class="itm-heat">{table}</table></div>'
        f'<p class="itm-quiet itm-legend">{legend}</p>'
    )


def pairs(title: str, rows: Iterable[dict]) -> str:
    """Cards of rows of audit.parquet, photo beside caption."""
    return section(f'<h2>{escaped(title)}</h2><ol class="itm-pairs">{"".join(map(_pair, rows))}</ol>')


def _pair(row: dict) -> str:
    name = escaped(row["image_id"])
    truth = {None: "", True: ' · <span class="itm-wrong">✗ wrong</span>', False: " · ✓ right"}[row["known_wrong"]]
    return (
        f"<li>{image_element(thumbnail(Item(row['image_id'], path=row['photo'])), name)}<div>"
        f'<p class="itm-caption">{escaped(row["caption"])}</p>'
        f'<p class="itm-quiet">probability {probability(row["clean_probability"])}{truth}</p>'
        f'<p class="itm-quiet">{row["rank"]:,} · photo {name} · caption {escaped(row["caption_id"])}</p></div></li>'
    )
