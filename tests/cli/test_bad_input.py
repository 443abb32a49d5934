"""Every bad input of docs/bad_input.md, run through the command line; the page must say what the program says."""

import re

import pytest

from support.bad_input.cases import CASES
from support.bad_input.page import PAGE, answer, row


@pytest.mark.parametrize("title", CASES)
def test_bad_input_is_answered_as_the_page_says(title, tmp_path):
    status, said = answer(title, tmp_path)
    assert status == (1 if "data check" in title else 2), said
    assert "Traceback" not in said
    assert row(title, said) in PAGE.read_text().splitlines()
    assert not (tmp_path / "run" / "results.json").exists()


def test_the_page_has_no_row_that_is_not_tested():
    titles = re.findall(r"^\| (.+?) \| `", PAGE.read_text(), re.M)
    assert titles == list(CASES)
