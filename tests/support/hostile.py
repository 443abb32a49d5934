"""Texts that would command a terminal, a page, a table or a picture, and what must not be left of them."""

from html.parser import HTMLParser

from clip_itm.visible import CONTROL

MARKUP = "[bold]x[/bold] a[/b] [link=file:///etc/passwd]y[/link] :dog:"
SIGNS = "\x1b[31mred\x1b]0;title\x07\x9b2J\x7f\x00\u202eleft\u2066"
HTML = "<script>alert(1)</script><img src=x onerror=alert(1)> \" ' &amp;"
CELLS = "a|b`c`**d**$e$[f](http://example.org)"
HOSTILE = f"{MARKUP} {SIGNS} {HTML} {CELLS}"
NAME = f"{MARKUP} {SIGNS} {CELLS}".replace("/", "").replace("\0", "")  # of a file


class Cells(HTMLParser):
    """The text of the cells of a table, and all elements."""

    def __init__(self, page: str):
        super().__init__()
        self.cells, self.tags, self.attributes = [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data):
        if self.cells:
            self.cells[-1] += data if data.strip() or not data.endswith("\n") else ""


def assert_no_markup(page: str) -> None:
    found = Cells(page)
    assert found.tags.count("script") <= 1  # the page's own
    assert "<script>alert" not in page
    assert not [name for name in found.attributes if name.startswith("on")]
    assert not CONTROL.search(page.replace("\n", "").replace("\t", ""))
