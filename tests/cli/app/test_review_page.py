"""The review within audit.html, which has no server: marks stay in the browser, and go to a file and back."""

import base64

import pytest
from PIL import Image

from clip_itm.data.images import small_jpeg
from clip_itm.data.marks import Mark, append_marks, marks_of_pairs, pair_hash, read_marks
from clip_itm.pages import render
from support.browser import SIZES, Keys, chord, console, nameless, press, resize, start_browser, until, wait_for

pytestmark = pytest.mark.slow
CAPTIONS = ["a red mug", "<script>alert(1)</script>", "click to enlarge", "click to enlarge", "two cats", "a dog"]


def rows() -> list[dict]:
    jpeg = small_jpeg(Image.new("RGB", (40, 30), "red"), 40)
    return [
        {
            "pair_hash": pair_hash(f"{k}.jpg", caption),
            "image_id": f"{k}.jpg",
            "caption": caption,
            "caption_id": str(k),
            "rank": k + 1,
            "clean_probability": k / 10,
            "image": k,
            "groups": ["interface"] if caption == "click to enlarge" else [],
            "known_wrong": None,
            "doubted_by": 1,
            "jpeg": jpeg if k else None,
            "suggested": {"captions": [{"text": f"better {k}", "is_proposed": True, "index": 0}], "photos": []},
            "others": [],
        }
        for k, caption in enumerate(CAPTIONS)
    ]


@pytest.fixture
def page(tmp_path):
    (tmp_path / "audit.html").write_text(
        render(
            "audit.html",
            title="Suspicious captions",
            pairs=100,
            split="train",
            method="by hand",
            sentence="none",
            trained="",
            facts=[],
            scores=[("score",)],
            number_of_scores=2,
            groups=[],
            more_groups=[],
            no_groups="no",
            rows=rows(),
            jpegs={},
            truth_is_known=False,
        ),
        encoding="utf-8",
    )
    return tmp_path / "audit.html"


@pytest.fixture
def browser(tmp_path):
    browser = start_browser(tmp_path / "downloads")
    yield browser
    browser.quit()


def begin(browser, page) -> None:
    browser.get(page.as_uri())
    wait_for(browser, "#open-review", "Review these pairs").click()


def said(browser, page) -> dict[str, str]:
    """What the marks of the downloaded file say."""
    file = page.parent / "downloads" / "marks.jsonl"
    file.unlink(missing_ok=True)
    wait_for(browser, "button", "Download marks").click()
    until(file.exists)
    return {mark.image_id: mark.text or mark.mark for mark in marks_of_pairs(read_marks(file)).values()}


def at(browser, name: str) -> None:
    until(lambda: wait_for(browser, ".looked-at .ids").text == f"photo {name}", name)


def test_marks_are_kept_downloaded_and_loaded(browser, page, tmp_path):
    begin(browser, page)
    press(browser, "ana", Keys.ENTER)
    at(browser, "0.jpg")
    assert not nameless(browser)
    press(browser, "w")
    at(browser, "1.jpg")
    assert wait_for(browser, ".looked-at .caption").text == "<script>alert(1)</script>"
    press(browser, "f", Keys.BACKSPACE, "a blue mug", Keys.ENTER)
    at(browser, "2.jpg")
    press(browser, "g", Keys.ARROW_DOWN, Keys.ENTER)
    wait_for(browser, ".bulk")
    chord(browser, Keys.SHIFT, "w")
    wait_for(browser, "dialog .question", "Mark all 2 pairs of “interface”")
    press(browser, Keys.ENTER)
    wait_for(browser, ".nothing", "All 2 pairs")
    browser.refresh()
    wait_for(browser, "#pairs .marked", "marked fixed: “a blue mug”")
    wait_for(browser, "#open-review").click()
    press(browser, "g", Keys.ARROW_UP, Keys.ENTER)
    at(browser, "4.jpg")
    press(browser, "1")
    at(browser, "5.jpg")
    press(browser, "r")
    wait_for(browser, ".nothing", "All 6 pairs")
    press(browser, "u")
    at(browser, "5.jpg")
    expected = {
        "0.jpg": "wrong",
        "1.jpg": "a blue mug",
        "2.jpg": "wrong",
        "3.jpg": "wrong",
        "4.jpg": "better 4",
    }
    assert said(browser, page) == expected
    written = read_marks(tmp_path / "downloads" / "marks.jsonl")
    assert [mark.mark for mark in written] == ["wrong", "fixed", "wrong", "wrong", "fixed", "right", "undone"]
    assert {(mark.author, mark.sampled) for mark in written} == {("ana", False)}
    assert all(mark.pair == pair_hash(mark.image_id, mark.caption) for mark in written)

    other = tmp_path / "other.jsonl"
    append_marks(other, [*written, Mark(pair_hash("5.jpg", "a dog"), "right", "5.jpg", "a dog", author="ben")])
    append_marks(other, [Mark("0" * 32, "wrong", "elsewhere.jpg", "of another page", author="ben")])
    field = browser.find_element("css selector", ".review input[type=file]")
    field.send_keys(str(other))
    wait_for(browser, ".said", "2 marks were added from other.jsonl")
    assert said(browser, page) == {**expected, "5.jpg": "right", "elsewhere.jpg": "wrong"}
    (tmp_path / "no.jsonl").write_text('{"pair": 3}\n')
    field.send_keys(str(tmp_path / "no.jsonl"))
    wait_for(browser, ".said", "no.jsonl is no file of marks: line 1 is no mark.")
    assert not console(browser)


@pytest.mark.parametrize("size", SIZES)
def test_it_fits_and_goes_back_to_the_page(browser, page, tmp_path, size):
    resize(browser, size)
    begin(browser, page)
    assert not nameless(browser)
    press(browser, "ana", Keys.ENTER)
    at(browser, "0.jpg")
    assert browser.execute_script("return document.documentElement.scrollWidth") == SIZES[size][0]
    assert not browser.find_element("css selector", "#pairs").is_displayed()
    picture = browser.get_screenshot_as_base64()
    (tmp_path / "review.png").write_bytes(base64.b64decode(picture))
    press(browser, Keys.ARROW_RIGHT)
    at(browser, "1.jpg")
    press(browser, "e")
    until(lambda: browser.execute_script("return document.querySelector('dialog.large img').naturalWidth") == 40)
    press(browser, Keys.ESCAPE)
    wait_for(browser, "button", "Back to the page").click()
    wait_for(browser, "#pairs .caption", "two cats")
    press(browser, "w")  # keys of a review that is closed do nothing
    assert not browser.find_elements("css selector", "#pairs .marked")
    assert not nameless(browser)
    assert browser.execute_script("return document.documentElement.scrollWidth") == SIZES[size][0]
    assert not console(browser)
