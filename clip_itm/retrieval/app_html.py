"""What the app writes into its page: results, heat map, cards of an audit."""

from collections.abc import Iterable, Sequence
from functools import lru_cache

from torch import Tensor

from clip_itm.pages import render
from clip_itm.retrieval.held_photos import HeldPhotos
from clip_itm.retrieval.items import Hit, Item
from clip_itm.retrieval.show import small_image

SIDE = 320  # longer side of an image of the gallery, pixels
SMALL_SIDE = 112  # above the columns of the heat map
CACHED_IMAGES = 2000  # of about 20 kB each
STYLE = render("app.css")


@lru_cache(CACHED_IMAGES)
def thumbnail(item: Item) -> bytes | None:
    """A small JPEG of an image; None if it can no longer be read."""
    return small_image(item, SIDE)


def message(text: str) -> str:
    """What to do, or what was wrong."""
    return render("app_message.html", text=text)


def header(title: str, notes: Iterable[str]) -> str:
    return render("app_header.html", title=title, notes=notes)


def results(title: str, hits: Sequence[Hit]) -> str:
    """Images as cards, captions as a table; rank, score, and id or caption of each."""
    return render("app_results.html", title=title, hits=hits, thumbnail=thumbnail)


def heat_map(images: Sequence[tuple[str, bytes]], captions: Sequence[str], similarity: Tensor) -> str:
    """A table of `similarity` [images, captions]: a row per caption, a column per image (name, JPEG).

    The shade goes from the smallest to the largest number. All that share the largest number of a row or a column are
    marked.
    """
    low, high = similarity.min(), similarity.max()
    heat = (similarity - low) / (high - low if high > low else 1)
    best_image = similarity == similarity.amax(0, keepdim=True)
    best_caption = similarity == similarity.amax(1, keepdim=True)
    columns = (part.T.tolist() for part in (similarity, heat, best_image, best_caption))
    rows = [(caption, list(zip(*cells, strict=True))) for caption, *cells in zip(captions, *columns, strict=True)]
    return render("app_heat_map.html", images=images, rows=rows)


def pairs(title: str, rows: Iterable[dict], held: HeldPhotos) -> str:
    """Cards of rows of audit.parquet, image beside caption; `held`: photos that are not files."""

    def photo(row: dict) -> bytes | None:
        if row["image"] is None:
            return held.jpeg(row["image_id"], SIDE)
        return thumbnail(Item(row["image_id"], path=row["image"]))

    shown = [(row, photo(row)) for row in rows]
    return render("app_pairs.html", title=title, rows=shown)
