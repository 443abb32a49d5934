"""What all HTML has in common: templates are installed, text of others stays text, colours can be read."""

import html
import re
import tomllib
from pathlib import Path

import pytest
import torch
from jinja2 import UndefinedError

import clip_itm
from clip_itm.pages import ENVIRONMENT, probability, render
from clip_itm.retrieval import app_html
from clip_itm.retrieval.held_photos import HeldPhotos
from clip_itm.retrieval.items import Hit, Item
from clip_itm.retrieval.show import Answer, results_page
from clip_itm.visible import visible
from support.hostile import HOSTILE, assert_no_markup

PACKAGE = Path(clip_itm.__file__).parent
HITS = {
    "image": [Hit(Item(HOSTILE, path="gone.png"), 0.5, 1)],
    "caption": [Hit(Item(HOSTILE, caption=HOSTILE), 0.5, 1)],
}
ROW = {
    "image_id": HOSTILE,
    "image": None,
    "caption_id": HOSTILE,
    "caption": HOSTILE,
    "clean_probability": 0.5,
    "rank": 1,
}
PARTS = {  # and how often they show the text
    "results.html, photos": (lambda: results_page([Answer(HOSTILE, HITS["image"])], HOSTILE), 4),
    "results.html, captions": (lambda: results_page([Answer(HOSTILE, HITS["caption"])], HOSTILE), 5),
    "app_header.html": (lambda: app_html.header(HOSTILE, [HOSTILE]), 2),
    "app_message.html": (lambda: app_html.message(HOSTILE), 1),
    "app_results.html, photos": (lambda: app_html.results(HOSTILE, HITS["image"]), 2),
    "app_results.html, captions": (lambda: app_html.results(HOSTILE, HITS["caption"]), 3),
    "app_heat_map.html": (lambda: app_html.heat_map([(HOSTILE, b"jpeg")], [HOSTILE], torch.zeros(1, 1)), 2),
    "app_pairs.html": (lambda: app_html.pairs(HOSTILE, [{**ROW, "known_wrong": True}], HeldPhotos(None)), 4),
}


@pytest.mark.parametrize("part", PARTS)
def test_text_of_others_is_shown_and_never_obeyed(part):
    make, times = PARTS[part]
    page = make()
    assert_no_markup(page)
    assert html.unescape(page).count(visible(HOSTILE, kept="\n\t")) == times


def test_every_page_but_the_audit_is_looked_at_above():
    """That one and the review, whose captions a script shows, have tests of their own, with such captions."""
    elsewhere = {"audit.html", "review.html", "review_page.html", "app_review_link.html"}
    pages = set(ENVIRONMENT.list_templates(["html"])) - {"page.html", "cards.html", *elsewhere}
    assert {part.partition(",")[0] for part in PARTS} == pages


def test_a_value_that_is_not_given_is_an_error():
    with pytest.raises(UndefinedError, match="'text' is undefined"):
        render("app_message.html")


def test_whatever_is_no_module_is_installed():
    """Templates among it: without them the package would work in its own repository only."""
    patterns = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = patterns["tool"]["setuptools"]["package-data"]["clip_itm"]
    installed = {path for pattern in patterns for path in PACKAGE.glob(pattern)}
    files = {path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert files <= installed
    assert {path.name for path in files} >= set(ENVIRONMENT.list_templates())


def test_pages_are_whole_in_themselves():
    for name in ENVIRONMENT.list_templates():
        assert not re.search("https?:|url\\(|@import|<link|<iframe", (PACKAGE / "templates" / name).read_text()), name


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_colours_of_text_can_be_read(mode):
    """A contrast of 4.5, the AA of WCAG 2, on what they stand on; `app` is gradio's own page."""
    style = (PACKAGE / "templates" / "style.css").read_text(encoding="utf-8")
    found = re.findall(r"--(\w+): light-dark\((#\w{6}), (#\w{6})\)", style)
    colours = {name: light if mode == "light" else dark for name, light, dark in found}
    colours["app"] = "#ffffff" if mode == "light" else "#0f0f11"
    for text in ("text", "quiet", "wrong", "right"):
        for ground in ("page", "card", "app"):
            one, other = sorted((luminance(colours[text]), luminance(colours[ground])), reverse=True)
            assert (one + 0.05) / (other + 0.05) >= 4.5, (text, ground)


def luminance(colour: str) -> float:
    """Of #rrggbb, as WCAG 2 defines it."""
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize(
    ("value", "said"), [(1.0, "1.000"), (0.0012, "0.001"), (0.000999, "< 0.001"), (0.0, "< 0.001")]
)
def test_a_small_probability_is_not_told_as_none(value, said):
    assert probability(value) == said
