"""What tests start by forking is as a Python that has just begun, of the package at hand."""

import os
import signal
from pathlib import Path

import pytest

from support.forks import Forked, run_python


def test_a_process_has_libraries_and_not_this_package():
    code = "import sys; print('torch' in sys.modules, [name for name in sys.modules if name.startswith('clip_itm')])"
    assert run_python("-c", code) == "True []\n"


def test_the_package_is_that_of_its_folder_or_path(tmp_path):
    (tmp_path / "clip_itm.py").write_text("print('another one')")
    assert run_python("-c", "import clip_itm", cwd=tmp_path) == "another one\n"
    assert run_python("-c", "import clip_itm", cwd=Path("/"), env={"PYTHONPATH": str(tmp_path)}) == "another one\n"


def test_words_status_and_environment_are_its_own(tmp_path):
    (tmp_path / "module.py").write_text("import os, sys; print(__name__, sys.argv[1:], dict(os.environ)); sys.exit(3)")
    process = Forked("-m", "module", "a", "b", cwd=tmp_path, env={"X": "1"})
    assert process.wait() == 3
    assert process.output == "__main__ ['a', 'b'] {'X': '1'}\n"
    assert "X" not in os.environ
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        run_python("-c", "1 / 0")


def test_it_hears_signals_and_ends_as_python_does():
    code = "import atexit, time\natexit.register(print, 'end')\nprint('begun')\ntime.sleep(60)"
    for number, status, said in ((signal.SIGINT, 1, "end"), (signal.SIGTERM, -signal.SIGTERM, "")):
        process = Forked("-c", code)
        process.wait_for("begun")
        process.send_signal(number)
        assert process.wait() == status
        assert ("end" in process.output) == bool(said)
