"""The site: every page is reached, nothing comes from elsewhere, keys and commands are in it, search works offline."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from clip_itm.cli import COMMANDS
from clip_itm.key_list import list_keys
from clip_itm.recipe import Recipe
from support.browser import SIZES, resize, start_browser, until
from support.paths import ROOT

CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
PAGES = ("index", "tutorials/your_photos", "prepare_data", "reference/recipe_training", "reference/commands")


def pages_of(entries: list) -> list[str]:
    """The files that `nav` names, in order."""
    found = []
    for entry in entries:
        for value in entry.values():
            found += pages_of(value) if isinstance(value, list) else [value]
    return found


def build(folder: Path, checkout: Path = ROOT) -> subprocess.CompletedProcess:
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(words, cwd=checkout, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_has_its_place_and_no_place_is_empty():
    named = pages_of(CONFIG["nav"])
    assert len(named) == len(set(named))
    here = {path.relative_to(ROOT / "docs").as_posix() for path in ROOT.glob("docs/**/*.md")}
    here |= {path.relative_to(ROOT).as_posix() for path in ROOT.glob("recipes/**/*.md")}
    assert here <= set(named)
    sources = {path.name.lower() for path in ROOT.glob("*.md")}  # what docs/theme/hooks.py adds, too
    assert {Path(page).name.lower() for page in set(named) - here} <= sources


@pytest.mark.slow
def test_nothing_comes_from_other_servers(site):
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r"<(?:script|img|iframe|source)[^>]*\ssrc=\"?(?:https?:)?//[^>]*>", text), page
        assert not re.findall(r"<link[^>]*href=\"?(?:https?:)?//[^>]*>", text), page
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(?:https?:)?//", style.read_text(encoding="utf-8")), style


@pytest.mark.slow
def test_every_key_has_an_anchor_and_every_command_a_heading(site):
    reference = "".join(page.read_text(encoding="utf-8") for page in (site / "reference").glob("recipe*.html"))
    anchors = re.findall(r"<span id=\"?([\w.-]+)", reference)
    assert len(anchors) == len(set(anchors)) > 250
    assert {key.name for group in list_keys(Recipe) for key in group.keys} == {
        re.match(r"[\w.]+", anchor)[0] for anchor in anchors
    }
    commands = (site / "reference" / "commands.html").read_text(encoding="utf-8")
    assert set(COMMANDS) <= set(re.findall(r"<h2 id=\"?([\w-]+)", commands))


@pytest.mark.slow
def test_examples_of_docstrings_are_code(site):
    python = (site / "reference" / "python.html").read_text(encoding="utf-8")
    assert "ItmTrainer" in python
    assert "&gt;&gt;&gt; " not in re.sub(r"<pre>.*?</pre>", "", python, flags=re.DOTALL)


@pytest.mark.slow
def test_what_is_wrong_ends_the_build(tmp_path):
    """A link into nothing, and a section that is not there."""
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT / "docs", checkout / "docs")
    for path in ROOT.iterdir():
        if path.name != "docs" and not path.name.startswith("."):
            (checkout / path.name).symlink_to(path)
    (checkout / "docs" / "wrong.md").write_text("# Wrong\n\n[nowhere](noise.md#nowhere)\n", encoding="utf-8")
    done = build(tmp_path / "site", checkout)
    assert done.returncode == 1
    assert "#nowhere" in done.stderr
    assert "not included in the" in done.stderr


@pytest.mark.slow
def test_it_is_searched_from_the_folder_and_fits_a_phone(site):
    browser = start_browser()
    try:
        for size in SIZES:
            resize(browser, size)
            for page in PAGES:
                browser.get((site / f"{page}.html").as_uri())
                wide = browser.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
                assert wide <= 0, (size, page)
        resize(browser, "desktop")
        browser.get((site / "index.html").as_uri())
        field = until(lambda: browser.find_element("css selector", "[data-md-component=search-query]"))
        field.click()
        field.send_keys("gradient_accumulation_steps")
        found = until(lambda: browser.find_elements("css selector", ".md-search-result__link"), "an answer")
        assert any("recipe_training" in link.get_attribute("href") for link in found)
        assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    finally:
        browser.quit()
