"""docs/bad_input.md: what the program says to every case of bad input.

python -m bad_input_page      writes the page anew
"""

import contextlib
import io
import os
import re
import sys
import tempfile
from pathlib import Path

import bad_input_app  # noqa: F401 registers its cases
import bad_input_data  # noqa: F401
import bad_input_door  # noqa: F401
import bad_input_export  # noqa: F401
import bad_input_hub  # noqa: F401
import bad_input_index  # noqa: F401
import bad_input_integrity  # noqa: F401
import bad_input_methods  # noqa: F401
import bad_input_outside  # noqa: F401
import bad_input_photos  # noqa: F401
import bad_input_regions  # noqa: F401
import bad_input_retrieval  # noqa: F401
import bad_input_runs  # noqa: F401
import bad_input_tables  # noqa: F401
from bad_input import CASES
from paths import ROOT

from clip_itm.cli import main

PAGE = ROOT / "docs" / "bad_input.md"
HEADER = """# Bad input and what it gives

Every row is run by `tests/test_bad_input.py`, which compares this page with what the program says
(`PYTHONPATH=tests python -m bad_input_page` writes it). The command ends with status 2, or 1 where `data check` finds
that training would fail, never with a traceback. `CLIP_ITM_DEBUG=1` shows the traceback of whatever was refused.

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
