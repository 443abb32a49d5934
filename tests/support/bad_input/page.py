"""docs/bad_input.md: what the program says to every case of bad input.

python -m support.bad_input.page      writes the page anew
"""

import contextlib
import io
import os
import re
import sys
import tempfile
from pathlib import Path

from clip_itm.cli import main
from support.bad_input import (  # noqa: F401 register their cases
    app,
    data,
    door,
    export,
    hub,
    index,
    integrity,
    methods,
    outside,
    photos,
    regions,
    retrieval,
    runs,
    tables,
)
from support.bad_input.cases import CASES
from support.paths import ROOT

PAGE = ROOT / "docs" / "bad_input.md"
HEADER = """# Bad input and what it gives

Every row is run by `tests/cli/test_bad_input.py`, which compares this page with what the program says
(`PYTHONPATH=tests python -m support.bad_input.page` writes it). The command ends with status 2, or 1 where
`data check` finds that training would fail, never with a traceback.
`CLIP_ITM_DEBUG=1` shows the traceback of whatever was refused.

| what is wrong | answer |
|---|---|
"""


def answer(title: str, place: Path) -> tuple[int, str]:
    """Exit status and what the user reads, with the folder written as DIR."""
    words = CASES[title](place)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(words)
    text = err.getvalue()
    begins = text.rfind(f"clip-itm {words[0]}: ")
    said = text[begins:] if begins >= 0 else "\n".join(re.findall(r"^(?:PROBLEM|LEAK).*\n.*$", out.getvalue(), re.M))
    said = re.sub(r"\([0-9a-f]{12}, not [0-9a-f]{12}\)", "(HASH, not HASH)", said)  # of random weights
    said = re.sub(r"-[0-9a-f]{16}\.", "-TOKEN.", said)  # of a file of an index
    lines = [
        line for line in said.replace(str(place), "DIR").splitlines() if "it/s]" not in line and "s/it]" not in line
    ]
    return status, "\n".join(lines).strip()


def row(title: str, said: str) -> str:
    cell = "<br>".join(f"`{line.strip()}`" for line in said.replace("|", "\\|").splitlines())
    return f"| {title} | {cell} |"


def write_page() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    rows = []
    for title in CASES:
        with tempfile.TemporaryDirectory() as folder:
            status, said = answer(title, Path(folder))
        print(status, title, "->", said, "\n", file=sys.__stdout__)
        rows.append(row(title, said))
    PAGE.write_text(HEADER + "\n".join(rows) + "\n")


if __name__ == "__main__":
    write_page()
