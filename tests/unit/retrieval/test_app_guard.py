"""Whose requests the app answers, and how much of them it keeps: without a server (test_server.py has one)."""

import asyncio
import os
import socket
import subprocess
import sys

import pytest

pytest.importorskip("gradio", reason="the app needs gradio: pip install 'clip-itm[app]'")

from clip_itm.lock import LOCK_FILE, locked
from clip_itm.retrieval.app_guard import LARGEST_REQUEST, Guard, Names
from clip_itm.retrieval.app_uploads import PREFIX, Uploads, remove_left_behind, uploads_of_a_server

LOCAL = Names.of("127.0.0.1")
OWN = socket.gethostname().lower()


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:7860", "127.0.0.1", "127.0.0.1:1", "[::1]", "[::1]:7860", "localhost:8888"]
)
def test_it_goes_by_the_names_of_this_machine(host):
    for names in (LOCAL, Names.of("0.0.0.0"), Names.of("::"), Names.of("my-machine", ["photos.example.org"])):
        assert names.include(host)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:7860",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "127.0.0.1.nip.io:7860",
        "evil.example#localhost",
        "localhost@evil.example",
        "evil@localhost",
        "localhost/evil.example",
        "localhost, evil.example",
        "localhost evil.example",
        "localhost\\evil",
        "localhost\n",
        "localhost:7860:1",
        "localhost:",
        "[localhost]",
        "::1",
        "2130706433.evil.example",
        "lοcalhost",  # Greek
        "",
    ],
)
def test_it_goes_by_no_other_name(host):
    for names in (LOCAL, Names.of("0.0.0.0"), Names.of("192.168.1.5"), Names.of("::", ["photos.example.org"])):
        assert not names.include(host)


def test_open_to_the_network_it_goes_by_addresses_and_its_own_name():
    for everywhere in ("0.0.0.0", "::", "[::]"):
        names = Names.of(everywhere)
        assert all(names.include(host) for host in ("192.168.1.5:7860", "[fe80::1]:7860", OWN, f"{OWN}.local:7860"))
    assert not LOCAL.include("192.168.1.5:7860")
    assert Names.of("192.168.1.5").include("192.168.1.5:7860")
    assert not Names.of("192.168.1.5").include("192.168.1.6")
    assert Names.of("My-Machine").include("my-machine:7860")


def test_names_that_are_given_are_its_own_too():
    names = Names.of("127.0.0.1", ["Photos.example.org"])
    assert names.include("photos.example.org")
    assert names.include("photos.example.org:443")
    assert not names.include("x.photos.example.org")
    for wrong in ("http://photos.example.org", "a b", "", "*", "photos.example.org:443", "*.example.org"):
        with pytest.raises(ValueError, match="not the name of a host"):
            Names.of("127.0.0.1", [wrong])
    names.add("https://1234.gradio.live")
    assert names.include("1234.gradio.live")
    assert not names.include("1235.gradio.live")


@pytest.mark.parametrize(
    ("origin", "own"),
    [
        ("http://localhost:7860", True),
        ("https://LOCALHOST:7860", True),
        ("http://localhost:3000", False),
        ("http://localhost", False),
        ("http://127.0.0.1:7860", False),
        ("http://evil.example", False),
        ("http://localhost:7860.evil.example", False),
        ("null", False),
        ("", False),
        ("file://localhost:7860", False),
        ("https://photos.example.org", True),
        ("https://evil-photos.example.org", False),
    ],
)
def test_a_page_of_its_own_is_one_of_its_own_address(origin, own):
    names = Names.of("127.0.0.1", ["photos.example.org"])
    assert names.include_origin(origin, "localhost:7860") == own


def answer(guard: Guard, method: str = "GET", path: str = "/config", kind: str = "http", **headers: str) -> int | str:
    """The status that a request gets: 200 where the app is reached; of a websocket what it is told."""
    sent = []

    async def ask():
        async def receive():
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message):
            sent.append(message)

        pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        await guard({"type": kind, "method": method, "path": path, "headers": pairs}, receive, send)

    asyncio.run(ask())
    return sent[0].get("status", sent[0]["type"])


async def reached(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})


@pytest.fixture
def guard(tmp_path) -> Guard:
    return Guard(reached, LOCAL, Uploads(tmp_path, most_bytes=1000, most_files=3))


def test_foreign_requests_do_not_reach_the_app(guard):
    assert answer(guard, host="localhost:7860") == 200
    assert answer(guard, host="localhost:7860", origin="http://localhost:7860") == 200
    assert answer(guard) == 400
    for method in ("GET", "HEAD", "POST", "OPTIONS"):  # a preflight, too
        assert answer(guard, method, host="evil.example") == 400
        assert answer(guard, method, host="localhost:7860", origin="https://evil.example") == 403
    assert answer(guard, kind="websocket", host="evil.example") == "websocket.close"
    assert answer(guard, kind="websocket", host="localhost", origin="http://evil.example") == "websocket.close"
    everywhere = Guard(reached, None, guard.uploads)
    assert answer(everywhere, host="me-space.hf.space", origin="https://huggingface.co") == 200


def test_requests_are_bounded(guard):
    own = {"host": "localhost"}
    assert answer(guard, "POST", **own, content_length=str(LARGEST_REQUEST)) == 200
    assert answer(guard, "POST", **own, content_length=str(LARGEST_REQUEST + 1)) == 413
    assert answer(guard, "POST", **own, transfer_encoding="chunked") == 411
    assert answer(guard, "POST", **own, content_length="-1") == 411
    assert answer(guard, "POST", "/gradio_api/upload", **own, content_length="1000") == 200
    assert answer(guard, "POST", "/gradio_api/upload", **own, content_length="1001") == 413
    with guard.uploads.coming(600):
        assert answer(guard, "POST", "/gradio_api/upload", **own, content_length="400") == 200
        assert answer(guard, "POST", "/gradio_api/upload", **own, content_length="401") == 413
    assert guard.uploads.under_way == 0


def write(folder, name: str, size: int, age: int) -> None:
    path = folder / name / "photo.jpg"
    path.parent.mkdir()
    path.write_bytes(bytes(size))
    os.utime(path, (1_000_000 - age, 1_000_000 - age))


def kept(folder) -> list[str]:
    assert {path.parent for path in folder.rglob("*.jpg")} == {path for path in folder.iterdir() if path.is_dir()}
    return sorted(path.parent.name for path in folder.rglob("*.jpg"))


def test_the_oldest_uploads_make_room(tmp_path):
    uploads = Uploads(tmp_path, most_bytes=1000, most_files=3)
    for age, name in enumerate("abcde"):
        write(tmp_path, name, 100, age)
    uploads.make_room()
    assert kept(tmp_path) == ["a", "b", "c"]
    with uploads.coming(850):
        assert kept(tmp_path) == ["a"]
    write(tmp_path, "new", 950, -1)
    uploads.make_room()
    assert kept(tmp_path) == ["new"]
    write(tmp_path, "huge", 1001, -2)
    uploads.make_room()
    assert kept(tmp_path) == []


def test_a_server_has_a_folder_of_its_own_that_goes_with_it(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    (tmp_path / "of somebody").write_text("kept")
    with uploads_of_a_server() as uploads:
        assert os.environ["GRADIO_TEMP_DIR"] == str(uploads.folder)
        assert uploads.folder.parent == tmp_path
        assert uploads.folder.stat().st_mode & 0o077 == 0  # nobody else looks in
        write(uploads.folder, "a", 10, 0)
        remove_left_behind(tmp_path)  # as another server does: this one is in use
        assert kept(uploads.folder) == ["a"]
    assert os.environ["GRADIO_TEMP_DIR"] == str(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["of somebody"]


def test_what_a_killed_server_left_is_removed_by_the_next(tmp_path, monkeypatch):
    """And nothing else that has such a name."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    code = (
        "import os; from clip_itm.retrieval.app_uploads import uploads_of_a_server as it\n"
        "with it() as uploads: (uploads.folder / 'photo.jpg').touch(); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    (left,) = tmp_path.iterdir()
    assert (left / "photo.jpg").exists()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "photo.jpg").touch()
    (tmp_path / f"{PREFIX}link").symlink_to(mine)
    (tmp_path / f"{PREFIX}file").touch()
    with locked(tmp_path / f"{PREFIX}used", "app"), uploads_of_a_server():
        assert not left.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{PREFIX}{name}" for name in ("file", "link", "used")
    ] + ["mine"]
    assert [path.name for path in mine.iterdir()] == ["photo.jpg"]
    assert not (mine / LOCK_FILE).exists()
