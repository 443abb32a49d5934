"""`clip-itm app` in headless Chromium: type a sentence, upload a photo, look at what is there."""

import pytest

from support.browser import asked_for, start_browser, wait_for
from support.tiny_app import IMAGES
from support.tiny_backbones import CAPTIONS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser():
    browser = start_browser()
    yield browser
    browser.quit()


def open_tab(browser, name: str) -> None:
    wait_for(browser, "button[role=tab]", name).click()


def test_a_sentence_a_photo_and_both(browser, address, place):
    browser.get(address)
    sentence = "two cats ${1 + 1} {{value}} <b>"
    wait_for(browser, "textarea, input[type=text]").send_keys(f"{sentence}\n")
    wait_for(browser, ".itm h2", f"Photos for “{sentence}”")
    cards = browser.find_elements("css selector", ".itm ol li")
    assert {card.text.splitlines()[-1] for card in cards} == set(IMAGES)
    pictures = browser.find_elements("css selector", ".itm ol li img")
    assert all(browser.execute_script("return arguments[0].naturalWidth", picture) == 56 for picture in pictures)

    open_tab(browser, "By photo")
    browser.find_element("css selector", "input[type=file]").send_keys(str(place / "photos" / "1.png"))
    wait_for(browser, ".itm h2", "Captions for 1.png")
    rows = browser.find_elements("css selector", ".itm tbody tr")
    assert {row.find_elements("tag name", "td")[2].text for row in rows} == set(CAPTIONS)

    open_tab(browser, "Heat map")
    photos = [str(place / "photos" / name) for name in ("0.png", "1.png")]
    browser.find_element("css selector", "input[type=file][multiple]").send_keys("\n".join(photos))
    wait_for(browser, "textarea", "").send_keys("a dog\ntwo cats\n<i>a child</i>")
    wait_for(browser, "button[aria-label*='thumbnail' i], .thumbnail-item")
    wait_for(browser, "button", "Compare").click()
    table = wait_for(browser, ".itm .heat")
    assert len(table.find_elements("css selector", "tbody td")) == 6
    assert "<i>a child</i>" in table.text

    open_tab(browser, "Audit")
    wait_for(browser, ".itm h2", "page 1 of 3")
    wait_for(browser, "button", "next").click()
    wait_for(browser, ".itm h2", "page 2 of 3")

    wait_for(browser, "a", "Review").click()
    wait_for(browser, "dialog.name button", "Begin")


def test_the_page_asks_no_other_host(browser, address):
    asked_for(browser)
    browser.get(address)
    wait_for(browser, "button[role=tab]", "By text")
    asked = asked_for(browser)
    assert len(asked) > 5
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
