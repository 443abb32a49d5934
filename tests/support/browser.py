"""Headless Chromium for tests: what a person sees, presses and hears."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

try:
    from selenium import webdriver
    from selenium.common.exceptions import WebDriverException
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys
except ImportError:  # of the extra dev
    webdriver = Keys = None

REQUIRED = "CLIP_ITM_REQUIRE_BROWSER"  # set where a browser that is missing is a failure and no reason to skip
INSTALL = "make browser, or apt-get install chromium chromium-driver"
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


def start_browser(downloads: Path | None = None, dark: bool = False):
    """A browser of its own, without a window. The test fails or is skipped where there is none."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if webdriver is None or not (chromium and driver):
        missing = "selenium" if webdriver is None else "Chromium" if not chromium else "chromedriver"
        if os.environ.get(REQUIRED):
            pytest.fail(f"{REQUIRED} is set, and there is no {missing}: {INSTALL}")
        pytest.skip(f"needs {missing}: {INSTALL}")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    words = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,900", "--lang=en-US"]
    for word in [*words, *(["--force-dark-mode"] if dark else [])]:
        options.add_argument(word)
    if downloads is not None:
        options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    browser.set_script_timeout(30)
    return browser


def resize(browser, size: str) -> None:
    """The page itself, which a window without a screen has no smaller than 500 pixels."""
    width, height = SIZES[size]
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == "phone"}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def until(holds: Callable[[], Any], what: Callable[[], str] | str = "", seconds: float = 30) -> Any:
    """What `holds` returns once that is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if found := holds():
                return found
        except WebDriverException:  # the page has just replaced it
            pass
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s: {what() if callable(what) else what}")


def wait_for(browser, selector: str, text: str = "", seconds: float = 30):
    """The first element on show that matches and has the text in it."""

    def found():
        elements = browser.find_elements("css selector", selector)
        return next((element for element in elements if element.is_displayed() and text in element.text), None)

    body = lambda: browser.find_element("tag name", "body").text  # noqa: E731
    return until(found, lambda: f"{selector} {text!r} is not on the page: {body()}", seconds)


def press(browser, *keys: str) -> None:
    """Keys, one after the other, wherever the focus is."""
    chain = ActionChains(browser)
    for key in keys:
        chain.send_keys(key)
    chain.perform()


def chord(browser, modifier: str, key: str) -> None:
    """A key while another one is held."""
    ActionChains(browser).key_down(modifier).send_keys(key).key_up(modifier).perform()


def console(browser) -> list[str]:
    """What the page has complained of since the last call; failures to reach a server are not its own."""
    return [
        entry["message"]
        for entry in browser.get_log("browser")
        if entry["level"] in ("SEVERE", "WARNING") and "net::ERR_" not in entry["message"]
    ]


def asked_for(browser) -> list[str]:
    """The addresses that were asked for since the last call."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


def nameless(browser) -> list[str]:
    """Controls on show that have no name for somebody who does not see them."""
    browser.execute_cdp_cmd("Accessibility.enable", {})
    nodes = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles = {"button", "link", "textbox", "searchbox", "combobox", "checkbox", "radio", "slider", "image", "dialog"}
    return [
        f"{node['role']['value']} {node.get('backendDOMNodeId')}"
        for node in nodes
        if not node.get("ignored")
        and node.get("role", {}).get("value") in roles
        and not node.get("name", {}).get("value", "").strip()
    ]


def reached_by_tab(browser, presses: int) -> list[str]:
    """What has the focus after each Tab: its data-act, name or tag."""
    found = []
    for _ in range(presses):
        press(browser, Keys.TAB)
        found.append(
            browser.execute_script(
                "const at = document.activeElement; return at.dataset.act || at.name || at.tagName.toLowerCase()"
            )
        )
    return found
