"""The command `clip-itm app` in a process of its own."""

import os
import re
import socket
import time
from pathlib import Path

from support.forks import Forked


def start(place: Path, *words: str, port: int | None = None) -> Forked:
    """`clip-itm app` with `place` as its folder, on a port that is free or on this one."""
    (place / "uploads").mkdir(exist_ok=True)
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(place / "uploads")}
    return Forked("-m", "clip_itm.cli", "app", *words, "--port", str(port or free_port()), cwd=place, env=environment)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def address_of(server: Forked) -> str:
    """What the command says once it can be opened."""
    while True:
        if found := re.search(r"open (http://\S+)", server.output):
            return found[1]
        assert server.poll() is None, server.output
        time.sleep(0.1)
