"""`clip-itm app` over HTTP: what its page asks for, and what a browser must never get."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from test_app_audit import write_audit
from tiny_app import indexed_pipeline, write_bomb
from tiny_backbones import CAPTIONS

pytest.importorskip("gradio", reason="the app needs gradio: pip install 'clip-itm[app]'")

pytestmark = pytest.mark.slow
UPLOADED = {"_type": "gradio.FileData"}  # how gradio's own page marks a file
CLIENT = httpx.Client(timeout=60)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """model/, images/, texts/ (indexes), photos/ and audit.parquet."""
    place = tmp_path_factory.mktemp("app")
    pipe = indexed_pipeline(place)
    pipe.save_pretrained(place / "model")
    for kind, name in (("image", "images"), ("text", "texts")):
        pipe.galleries[kind].save(place / name)
    write_audit(place / "audit.parquet")
    return place


@pytest.fixture(scope="module")
def server(place) -> Iterator[subprocess.Popen]:
    """The command in a process of its own, which serves at `address`; what it says is in said.txt."""
    words = ["--model", "model", "--index", "images", "--index", "texts", "--audit", "audit.parquet"]
    words += ["--port", str(free_port())]
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(place / "uploads"), "PYTHONUNBUFFERED": "1"}
    with (place / "said.txt").open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "clip_itm.cli", "app", *words],
            env=environment,
            cwd=place,
            stdout=said,
            stderr=subprocess.STDOUT,
            # what a shell starts in the background ignores Ctrl-C, and so does what that starts
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    yield process
    process.kill()
    process.wait()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def address(server, place) -> str:
    """What the command says once it can be opened."""
    while True:
        said = (place / "said.txt").read_text()
        if found := re.search(r"open (http://\S+)", said):
            return found[1]
        assert server.poll() is None, said
        time.sleep(0.1)


def ask(address: str, what: str, *inputs) -> str:
    """The answer of the page's function, as an event stream."""
    event = CLIENT.post(f"{address}gradio_api/call/{what}", json={"data": inputs}).json()["event_id"]
    return CLIENT.get(f"{address}gradio_api/call/{what}/{event}").text


def status_of(address: str, path: str) -> int:
    """Of a path that is sent as it is; a client made for users resolves the dots in it."""
    connection = HTTPConnection(urlsplit(address).netloc, timeout=60)
    connection.request("GET", path)
    status = connection.getresponse().status
    connection.close()
    return status


def upload(address: str, name: str, content: bytes) -> dict:
    answer = CLIENT.post(f"{address}gradio_api/upload", files={"files": (name, content)})
    answer.raise_for_status()
    return {"path": answer.json()[0], "meta": UPLOADED}


def test_search_heat_map_and_audit(address, place):
    page = ask(address, "search_by_text", "two cats", 3)
    assert page.startswith("event: complete")
    assert page.count("<li>") == page.count("data:image/jpeg;base64,") == 3
    photo = upload(address, "1.png", (place / "photos" / "1.png").read_bytes())
    page = ask(address, "search_by_photo", photo, 10)
    assert all(caption in page for caption in CAPTIONS)
    page = ask(address, "heat_map", [{"image": photo, "caption": None}], "a dog\ntwo cats")
    assert page.count("--heat") == 2
    assert "page 2 of 3" in ask(address, "audit", 2, "", 0, 1)


def test_no_file_outside_of_the_uploads_is_served(address, place):
    outside = [place / "photos" / "0.png", place / "model" / "config.json", place / "audit.parquet", Path(__file__)]
    assert all(path.is_file() for path in outside)
    for path in ["/etc/passwd", *map(str, outside)]:
        up = "../" * 12 + path.lstrip("/")
        for name in (path, f"/{path}", up, up.replace("../", "%2e%2e%2f"), f"file://{path}", f"{place}/uploads/{up}"):
            for route in ("gradio_api/file=", "gradio_api/file/", "file=", "static/", "assets/", "theme.css/"):
                assert status_of(address, f"/{route}{name}") in (403, 404), (route, name)
    assert str(place) not in CLIENT.get(f"{address}config").text


@pytest.mark.parametrize("marked", [True, False], ids=["as the page does", "without gradio's mark"])
def test_no_file_outside_of_the_uploads_is_read(address, place, marked):
    for name in (str(place / "photos" / "1.png"), "/etc/passwd", f"{address}config", f"file://{place}/photos/1.png"):
        file = {"path": name, **({"meta": UPLOADED} if marked else {})}
        for page in (
            ask(address, "search_by_photo", file, 4),
            ask(address, "heat_map", [{"image": file, "caption": None}], "a dog"),
        ):
            assert "was not uploaded" in page or page.startswith("event: error")
            assert "itm-number" not in page
    page = ask(address, "search_by_text", str(place / "photos" / "1.png"), 4)
    assert page.count("<li>") == 4  # it is a sentence


def test_damaged_photos_and_bombs_become_messages(address, place):
    bomb = write_bomb(place / "bomb.png").read_bytes()
    torn = (place / "photos" / "0.png").read_bytes()[:500]
    for name, content, why in (
        ("bomb.png", bomb, "more than the limit"),
        ("torn.png", torn, "cannot be decoded"),
        ("words.jpg", b"words", "not a photo"),
        ("page.svg", b"<svg/>", "not a photo"),
        ("film.mp4", b"words", "not a photo"),
    ):
        file = upload(address, name, content)
        for page in (
            ask(address, "search_by_photo", file, 4),
            ask(address, "heat_map", [{"image": file, "caption": None}], "a dog"),
        ):
            assert page.startswith("event: complete"), page
            assert f"{name}: " in page
            assert why in page
            assert str(place) not in page


def test_an_upload_above_the_limit_is_refused(address):
    answer = CLIENT.post(f"{address}gradio_api/upload", files={"files": ("big.png", bytes(33 * 2**20))})
    assert answer.status_code == 413


def test_it_ends_quietly_with_ctrl_c(address, server, place):
    before = len((place / "said.txt").read_text())
    assert CLIENT.get(address).status_code == 200
    server.send_signal(signal.SIGINT)
    assert server.wait(30) == 0
    assert (place / "said.txt").read_text()[before:].strip() == ""
