"""Python in a process of its own, without the seconds that the imports of libraries take.

A server that has imported the libraries of others (third_party.py) forks every process. This package is not among
them: a process imports it anew, from where `cwd` and PYTHONPATH say. What libraries read from the environment when they
are imported (HF_HOME, HF_MODULES_CACHE, ...) has no effect any more: such processes are started by subprocess.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import time
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

from support.paths import TESTS

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["support.third_party"])


class Forked:
    """`python WORDS`, begun: -m MODULE ..., -c CODE ... or FILE ...; much like `subprocess.Popen`."""

    def __init__(self, *words: str, cwd: Path | None = None, env: dict[str, str] | None = None):
        self._place = tempfile.TemporaryDirectory(prefix="forked-")  # goes with this object
        self._said = Path(self._place.name) / "said.txt"
        self._said.touch()
        environment = dict(os.environ if env is None else env)
        self._process = CONTEXT.Process(target=_run, args=(words, str(cwd or Path.cwd()), environment, str(self._said)))
        with mock.patch.dict(os.environ, PYTHONPATH=str(TESTS)):  # where the server finds what it preloads
            forkserver.ensure_running()
        self._process.start()
        self.pid = self._process.pid

    @property
    def output(self) -> str:
        """What it has printed so far, on either stream."""
        return self._said.read_text(encoding="utf-8", errors="replace")

    def poll(self) -> int | None:
        """The exit status, minus the signal where one ended it; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float = 600) -> int:
        self._process.join(timeout)
        if self.poll() is None:
            self.kill()
            raise TimeoutError(f"not done after {timeout} s:\n{self.output}")
        return self.poll()

    def wait_for(self, text: str, timeout: float = 300) -> None:
        """Until it has printed this."""
        end = time.monotonic() + timeout
        while text not in self.output:
            assert self.poll() is None, self.output
            assert time.monotonic() < end, self.output
            time.sleep(0.01)

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()
        self._process.join()


def run_python(*words: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """What `python WORDS` prints; it has to end well."""
    process = Forked(*words, cwd=cwd, env=env)
    assert process.wait() == 0, process.output
    return process.output


def _run(words: tuple[str, ...], cwd: str, environment: dict[str, str], said: str) -> None:
    """In the process: as if Python had just begun."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    output = os.open(said, os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout.reconfigure(encoding="utf-8", line_buffering=True)
    sys.stderr.reconfigure(encoding="utf-8", line_buffering=True)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.path[:0] = [cwd, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    try:
        match words:
            case ("-m", module, *rest):
                sys.argv = [module, *rest]
                runpy.run_module(module, run_name="__main__", alter_sys=True)
            case ("-c", code, *rest):
                sys.argv = ["-c", *rest]
                exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
            case (file, *rest):
                sys.argv = [file, *rest]
                runpy.run_path(file, run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out
