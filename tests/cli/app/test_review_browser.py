"""The review in headless Chromium, by keyboard: whatever happens to server and page, each mark is there once."""

import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from clip_itm.data.marks import marks_of_pairs, read_marks
from support.app_process import address_of, free_port, start
from support.browser import (
    SIZES,
    Keys,
    chord,
    console,
    nameless,
    press,
    reached_by_tab,
    resize,
    start_browser,
    until,
    wait_for,
)
from support.tiny_app import write_review

pytestmark = pytest.mark.slow


class Served:
    """A review on a port of its own, which can be killed and started again."""

    def __init__(self, place: Path, pairs: int = 60):
        write_review(place / "audit.parquet", pairs)
        self.place, self.port, self.file = place, free_port(), place / "marks.jsonl"
        self.table = pq.read_table(place / "audit.parquet").to_pylist()
        self.start()

    def start(self) -> None:
        self.process = start(self.place, "--audit", "audit.parquet", port=self.port)
        self.address = address_of(self.process)

    def kill(self) -> None:
        self.process.kill()

    def lines(self) -> list:
        return read_marks(self.file) if self.file.exists() else []

    def marks(self) -> dict[str, str]:
        """Of the photo of each pair: what was said of it last."""
        return {mark.image_id: mark.text or mark.mark for mark in marks_of_pairs(self.lines()).values()}


@pytest.fixture
def served(tmp_path):
    served = Served(tmp_path)
    yield served
    served.kill()


@pytest.fixture(scope="module")
def browser():
    browser = start_browser()
    yield browser
    browser.quit()


def open_review(browser, served, author: str = "ana") -> None:
    browser.get(served.address)
    wait_for(browser, "dialog.name button", "Begin")
    press(browser, author, Keys.ENTER)  # in place of the name that is there
    wait_for(browser, ".looked-at")


def photo_of(browser) -> str:
    """The id of the photo that is on show."""
    return wait_for(browser, ".looked-at .ids").text.removeprefix("photo ")


def count(browser) -> int:
    """How many pairs are marked, as the page says."""
    words = wait_for(browser, ".count").text.replace("(", "").split()
    return int(words[words.index("all") - 2] if "all" in words else words[0])


def act(browser, served, k: int) -> str:
    """Decide on the k-th pair by keys, in turn one of six ways; what was said of it."""
    ways = k % 6
    suggestion = browser.execute_script(
        "return document.querySelector('.suggestions:not([hidden]) button')?.textContent"
    )
    if ways == 3 or (ways == 4 and not suggestion):
        press(browser, "f", Keys.BACKSPACE, f"fixed {k}", Keys.ENTER)
        return f"fixed {k}"
    if ways == 4:
        press(browser, "1")
        return suggestion.removeprefix("1 ")
    if ways == 5:
        press(browser, "w")
        until(lambda: photo_of(browser) == f"image {k + 1}")
        press(browser, "u")
        until(lambda: photo_of(browser) == f"image {k}")
        press(browser, "r")
        return "right"
    press(browser, ("w", "r", "s")[ways])
    return ("wrong", "right", "skipped")[ways]


def test_fifty_suspects_by_keyboard_with_the_server_killed_in_the_middle(browser, served):
    open_review(browser, served)
    said = {}
    for k in range(50):
        until(lambda k=k: photo_of(browser) == f"image {k}", k)
        if k == 24:
            until(lambda: len(served.marks()) == 24)
            served.kill()
            assert count(browser) == 24
        said[f"image {k}"] = act(browser, served, k)
        if k == 26:
            wait_for(browser, ".trouble", "The server does not answer")
            wait_for(browser, ".trouble", "3 marks are kept in this browser")
            assert count(browser) == len(served.marks()) == 24  # none is told as made
            served.start()
            until(lambda: not browser.find_element("css selector", ".trouble").is_displayed())
            until(lambda: count(browser) == 27)
            assert "answers again" in browser.find_element("css selector", ".said").text or count(browser) == 27
    until(lambda: len(served.marks()) == 50 and count(browser) == 50)
    assert served.marks() == said
    kinds = Counter(mark.mark for mark in served.lines())
    assert kinds == {"wrong": 17, "right": 17, "skipped": 8, "fixed": 16, "undone": 8}  # nothing is doubled
    assert {mark.author for mark in served.lines()} == {"ana"}
    assert not console(browser)


def test_a_server_that_is_killed_while_marks_are_under_way_loses_and_doubles_none(browser, served):
    open_review(browser, served)
    for round in range(3):
        first = photo_of(browser)
        for _ in range(3):
            before = photo_of(browser)
            press(browser, "w")
            until(lambda before=before: photo_of(browser) != before)
            time.sleep(0.005 * round)
        served.kill()
        served.start()
        until(lambda first=first: count(browser) >= 3 and photo_of(browser) != first)
        until(lambda round=round: count(browser) == 3 * round + 3)
    assert served.marks() == {f"image {k}": "wrong" for k in range(9)}
    assert len(served.lines()) == 9


def test_marks_that_were_not_sent_outlive_a_reload(browser, served):
    open_review(browser, served)
    press(browser, "w")
    until(lambda: count(browser) == 1)
    served.kill()
    press(browser, "r")
    wait_for(browser, ".trouble", "1 mark is kept in this browser")
    served.start()
    browser.refresh()
    until(lambda: served.marks() == {"image 0": "wrong", "image 1": "right"})
    until(lambda: photo_of(browser) == "image 2" and count(browser) == 2)
    assert len(served.lines()) == 2
    press(browser, "u")
    until(lambda: photo_of(browser) == "image 1")  # what was done before the reload can be undone
    until(lambda: served.marks() == {"image 0": "wrong"})


@contextmanager
def another_browser():
    other = start_browser()
    try:
        yield other
    finally:
        other.quit()


def test_two_browsers_at_once(browser, served):
    with another_browser() as other:
        open_review(browser, served, "ana")
        open_review(other, served, "ben")
        press(browser, "w")
        wait_for(other, ".looked-at .mark", "marked wrong by ana")
        press(other, "r")
        until(lambda: photo_of(other) == "image 1")
        assert photo_of(browser) == "image 1"
        press(browser, "w", "r")
        press(other, "s")
        until(lambda: len(served.lines()) >= 5)
        until(lambda: count(browser) == count(other) == len(served.marks()))
        press(browser, *["w"] * 5)
        press(other, *["r"] * 5)
        until(lambda: count(browser) == count(other) == len(served.marks()))
        keys = [(mark.pair, mark.mark, mark.author, mark.time) for mark in served.lines()]
        assert len(keys) == len(set(keys)) > 10
        assert served.marks()["image 0"] == "right"  # the last mark counts
        assert not console(browser) + console(other)


def test_a_group_at_once_and_back(browser, served):
    open_review(browser, served)
    chord(browser, Keys.SHIFT, "w")
    assert "Choose a group" in wait_for(browser, ".said", "group").text
    press(browser, "g", Keys.ARROW_DOWN, Keys.ENTER)
    until(lambda: photo_of(browser) == "image 1")
    chord(browser, Keys.SHIFT, "w")
    wait_for(browser, "dialog .question", "Mark all 15 pairs of “interface” without a mark as wrong?")
    assert not nameless(browser)
    press(browser, Keys.ESCAPE)
    time.sleep(0.2)
    assert not served.lines()
    press(browser, "r")
    until(lambda: photo_of(browser) == "image 5")
    chord(browser, Keys.SHIFT, "w")
    wait_for(browser, "dialog .question", "Mark all 14 pairs")
    press(browser, Keys.ENTER)
    wait_for(browser, ".nothing", "All 15 pairs of this list are marked.")
    members = {row["image_id"] for row in served.table if row["groups"]}
    until(lambda: len(served.lines()) == 15)
    assert served.marks() == {**dict.fromkeys(members, "wrong"), "image 1": "right"}
    chord(browser, Keys.CONTROL, "z")
    until(lambda: served.marks() == {"image 1": "right"})
    until(lambda: photo_of(browser) == "image 5")


def test_the_random_sample_tells_how_many_are_wrong(browser, served):
    open_review(browser, served)
    press(browser, "w")
    until(lambda: len(served.lines()) == 1)
    browser.execute_script(
        "const order = document.querySelector('[name=order]'); order.value = 'sample';"
        "order.dispatchEvent(new Event('change'));"
    )
    wait_for(browser, ".count", "0 of 60 of the sample marked")
    press(browser, "r")
    wait_for(browser, ".count", "1 of 60 of the sample marked")
    assert [mark.sampled for mark in served.lines()] == [False, True]
    assert served.lines()[1].weight > 0


def test_text_of_others_is_shown_and_never_obeyed(browser, served):
    open_review(browser, served)
    suggestion = wait_for(browser, ".suggestions button", "<b>better</b> 0")
    assert not suggestion.find_elements("css selector", "b")
    for _ in range(4):
        press(browser, Keys.ARROW_RIGHT)
        time.sleep(0.1)
    until(lambda: photo_of(browser) == "image 4")
    assert wait_for(browser, ".caption").text == "<i>cat</i> 4"
    press(browser, "f", Keys.BACKSPACE, "<script>alert(1)</script>", Keys.ENTER)
    until(lambda: served.marks() == {"image 4": "<script>alert(1)</script>"})
    wait_for(browser, ".said", "fixed: “<script>alert(1)</script>”")
    press(browser, *[Keys.ARROW_LEFT])
    until(lambda: photo_of(browser) == "image 4")
    wait_for(browser, ".mark", "<script>alert(1)</script>")
    assert not console(browser)


def test_keys_leave_fields_alone_and_a_key_that_is_held_marks_one(browser, served):
    open_review(browser, served)
    press(browser, "f", Keys.BACKSPACE, "rws 123 ug?")
    time.sleep(0.1)
    press(browser, Keys.ESCAPE)
    assert photo_of(browser) == "image 0"
    press(browser, "f", Keys.BACKSPACE, Keys.ENTER)
    wait_for(browser, ".said", "Write what the photo shows")
    press(browser, Keys.ESCAPE)
    for kind in ("keyDown", "keyDown", "keyDown", "keyUp"):
        event = {"type": kind, "key": "w", "code": "KeyW", "text": "w", "autoRepeat": kind == "keyDown"}
        browser.execute_cdp_cmd("Input.dispatchKeyEvent", event)
    time.sleep(0.3)
    assert not served.lines()
    press(browser, "e")
    until(lambda: browser.execute_script("return document.querySelector('dialog.large img').naturalWidth") > 0)
    press(browser, "w")
    press(browser, "e")
    assert not served.lines()
    press(browser, "w")
    until(lambda: served.marks() == {"image 0": "wrong"})


@pytest.mark.parametrize("size", SIZES)
def test_everything_has_a_name_and_a_place_within_reach(browser, served, size, tmp_path):
    resize(browser, size)
    try:
        browser.get(served.address)
        wait_for(browser, "dialog.name")
        assert not nameless(browser)
        press(browser, Keys.ENTER)
        wait_for(browser, ".looked-at")
        assert not nameless(browser)
        acts = {"right", "wrong", "fix", "skip", "undo", "enlarge", "author", "keys"}
        assert acts | {"order", "group"} <= set(reached_by_tab(browser, 16))
        press(browser, "?")
        wait_for(browser, "dialog.keys h2", "Keys")
        assert not nameless(browser)
        press(browser, Keys.ESCAPE)
        browser.execute_script("document.querySelector('.looked-at').focus()")
        press(browser, "e")
        wait_for(browser, "dialog.large")
        assert not nameless(browser)
        press(browser, Keys.ESCAPE)
        width, height = SIZES[size]
        for element in browser.find_elements(
            "css selector", ".acts button, .tools button:not([hidden]), .photo, .caption"
        ):
            box = element.rect
            assert min(box["x"], box["y"]) >= 0, element.text
            assert box["x"] + box["width"] <= width, element.text
            assert box["y"] + box["height"] <= height, element.text
        assert browser.execute_script("return document.documentElement.scrollWidth") == width
        browser.save_screenshot(str(tmp_path / f"review-{size}.png"))
        for name in ("Right", "Wrong"):
            before = photo_of(browser)
            wait_for(browser, ".acts button", name).click()
            until(lambda before=before: photo_of(browser) != before)
        until(lambda: served.marks() == {"image 0": "right", "image 1": "wrong"})
        assert "2 of" in browser.find_element("css selector", ".count").text
        assert browser.find_element("css selector", ".said").get_attribute("role") == "status"
        assert not console(browser)
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
