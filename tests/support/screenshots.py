"""Pictures of the documentation: the review of an audit, at work.

python -m support.screenshots AUDIT      writes docs/images/review.png
"""

import sys
import tempfile
from pathlib import Path

from support.app_process import address_of, start
from support.browser import Keys, press, resize, start_browser, until, wait_for
from support.paths import ROOT


def main(audit: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = start(Path(folder), "--audit", str(audit.resolve()), "--marks", f"{folder}/marks.jsonl")
        browser = start_browser()
        try:
            resize(browser, "desktop")
            browser.get(address_of(server))
            wait_for(browser, "dialog.name")
            press(browser, "ana", Keys.ENTER)
            for count, key in enumerate("wwrww", 1):
                until(lambda: browser.execute_script("return document.querySelector('.photo img').naturalWidth"))
                press(browser, key)
                wait_for(browser, ".count", f"{count} of ")
            until(lambda: browser.execute_script("return document.querySelector('.photo img').naturalWidth"))
            browser.save_screenshot(str(ROOT / "docs" / "images" / "review.png"))
        finally:
            browser.quit()
            server.kill()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
