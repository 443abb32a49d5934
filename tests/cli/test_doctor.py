"""`clip-itm doctor` as a user runs it."""

import json

import pytest

from clip_itm import environment
from clip_itm.cli import main


@pytest.fixture
def few(monkeypatch):
    """Two packages to look at instead of forty."""
    wanted = {"numpy": ">=1"}, {"plot": {"absent-one": ">=3"}}
    monkeypatch.setattr(environment, "requirements", lambda: wanted)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return wanted


def test_what_is_printed(few, tmp_path, capsys):
    assert main(["doctor", "--cache-dir", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for words in ("clip_itm  ", "python  ", "platform  ", "  numpy  ", "absent-one not installed", "free on its disk"):
        assert words in printed
    assert "HF_HUB_OFFLINE=1" in printed
    assert printed.endswith("no problem found\n")


def test_a_problem_is_named_and_is_the_exit_status(few, capsys):
    few[0]["absent-two"] = ">=1"
    assert main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert "absent-two            not installed" in printed
    assert "absent-two is not installed, and everything needs it" in printed.partition("problems\n")[2]


def test_json_is_a_file_or_the_terminal(few, tmp_path, capfd):
    assert main(["doctor", "--json", str(tmp_path / "doctor.json")]) == 0
    written = json.loads((tmp_path / "doctor.json").read_text(encoding="utf-8"))
    assert written["packages"]["numpy"]["error"] is None
    capfd.readouterr()
    assert main(["doctor", "--json", "-"]) == 0
    assert json.loads(capfd.readouterr().out).keys() == written.keys()


def test_a_key_of_a_recipe_is_refused(few, capsys):
    assert main(["doctor", "--data.root", "x"]) == 2
    assert "doctor takes no keys of a recipe" in capsys.readouterr().err


@pytest.mark.slow
def test_this_installation_has_no_problem(capsys):
    main(["doctor"])
    printed = capsys.readouterr().out
    assert "torch                 built for" in printed
    assert "BROKEN" not in printed
