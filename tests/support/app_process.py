"""The command `clip-itm app` in a process of its own."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path


def start(place: Path, *words: str) -> subprocess.Popen:
    (place / "uploads").mkdir(exist_ok=True)
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(place / "uploads"), "PYTHONUNBUFFERED": "1"}
    with (place / "said.txt").open("w") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "clip_itm.cli", "app", *words, "--port", str(free_port())],
            env=environment,
            cwd=place,
            stdout=said,
            stderr=subprocess.STDOUT,
            # what a shell starts in the background ignores Ctrl-C (and with nohup SIGHUP), and so does what that starts
            preexec_fn=lambda: [signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGHUP)],
        )


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def address_of(server: subprocess.Popen, place: Path) -> str:
    """What the command says once it can be opened."""
    while True:
        said = (place / "said.txt").read_text()
        if found := re.search(r"open (http://\S+)", said):
            return found[1]
        assert server.poll() is None, said
        time.sleep(0.1)
