"""`clip-itm app` over HTTP: what its page asks for, and what a browser must never get."""

import signal
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from support.app_process import address_of, start
from support.tiny_app import write_bomb
from support.tiny_backbones import CAPTIONS

pytest.importorskip("gradio", reason="the app needs gradio: pip install 'clip-itm[app]'")

from clip_itm.retrieval.app_uploads import MOST_FILES, PREFIX

pytestmark = pytest.mark.slow
UPLOADED = {"_type": "gradio.FileData"}  # how gradio's own page marks a file
CLIENT = httpx.Client(timeout=60)


def ask(address: str, what: str, *inputs) -> str:
    """The answer of the page's function, as an event stream."""
    event = CLIENT.post(f"{address}gradio_api/call/{what}", json={"data": inputs}).json()["event_id"]
    return CLIENT.get(f"{address}gradio_api/call/{what}/{event}").text


def status_of(address: str, path: str, method: str = "GET", body=None, **headers: str) -> int:
    """Of a path that is sent as it is; a client made for users resolves the dots in it, and names the right host."""
    connection = HTTPConnection(urlsplit(address).netloc, timeout=60)
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders(body)
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
    assert page.count("<td ") == page.count("--heat") == 2
    assert "page 2 of 3" in ask(address, "audit", 2, "", 0, 1)


def test_everything_that_is_uploaded_is_in_the_folder_of_the_server(address, place):
    """Copies that gradio makes, too: another folder would be neither bounded nor removed."""
    photo = upload(address, "1.png", (place / "photos" / "1.png").read_bytes())
    ask(address, "search_by_photo", photo, 10)
    ask(address, "heat_map", [{"image": photo, "caption": None}], "a dog")
    (own,) = (place / "uploads").glob(f"{PREFIX}*")
    assert kept(place)
    assert all(path.is_relative_to(own) for path in kept(place))


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
            assert "<td" not in page
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


ROUTES = ("/", "/config", "/gradio_api/info", "/gradio_api/queue/data?session_hash=a", "/gradio_api/call/heat_map/a")


def test_only_requests_for_its_own_names_are_answered(address):
    port = urlsplit(address).port
    for host in ("evil.example", f"evil.example:{port}", f"localhost.evil.example:{port}", "127.0.0.1.nip.io", "::1"):
        for route in ROUTES:
            assert status_of(address, route, Host=host) == 400, (route, host)
        assert status_of(address, "/gradio_api/queue/join", "POST", Host=host, Content_Length="0") == 400
        assert status_of(address, "/gradio_api/upload", "POST", Host=host, Content_Length="0") == 400
        asks = {"Access_Control_Request_Method": "POST", "Origin": f"http://{host}"}
        assert status_of(address, "/config", "OPTIONS", Host=host, **asks) == 400
    for host in (f"localhost:{port}", "LOCALHOST", f"127.0.0.1:{port}", "[::1]:80", f"localhost:{port + 1}"):
        assert status_of(address, "/config", Host=host) == 200, host


def test_pages_of_others_are_not_answered(address):
    own = address.rstrip("/")
    for origin in ("http://evil.example", "null", f"{own}.evil.example", "http://127.0.0.1:1"):
        for route in ROUTES:
            answer = CLIENT.get(f"{own}{route}", headers={"Origin": origin})
            assert answer.status_code == 403
            assert "access-control-allow-origin" not in answer.headers
        asked = CLIENT.options(f"{own}/config", headers={"Origin": origin, "Access-Control-Request-Method": "POST"})
        assert asked.status_code == 403
        assert "access-control-allow-origin" not in asked.headers
        websocket = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec_WebSocket_Version": "13"}
        key = {"Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ=="}
        assert status_of(address, "/queue/join", Origin=origin, **websocket, **key) == 403
    assert CLIENT.get(f"{own}/config", headers={"Origin": own}).status_code == 200


def test_long_texts_and_requests_become_messages(address):
    assert "1,001 characters are too many" in ask(address, "search_by_text", "a" * 1001, 3)
    assert "1,001 characters are too many" in ask(address, "audit", 1, "a" * 1001, 0, 1)
    assert ask(address, "search_by_text", "a" * 1000, 50).count("<li>") == 4
    call = "/gradio_api/call/search_by_text"
    answer = CLIENT.post(f"{address.rstrip('/')}{call}", json={"data": ["a" * 2**20, 3]})
    assert answer.status_code == 413
    pieces = (b"3\r\nabc\r\n", b"0\r\n\r\n")
    assert status_of(address, call, "POST", b"".join(pieces), Transfer_Encoding="chunked") == 411
    for route in ("run", "api"):  # nothing gets past the queue and its bound
        data = {"data": ["a dog", 3]}
        assert CLIENT.post(f"{address}gradio_api/{route}/search_by_text", json=data).status_code in (404, 405)


def kept(place: Path) -> list[Path]:
    return [path for path in (place / "uploads").rglob("*") if path.is_file() and path.name != ".clip_itm.lock"]


def test_uploads_are_bounded_in_all(address, place):
    """By their number here, one request or many; by their size in test_app_guard.py."""
    names = [("files", (f"{number}.png", b"%d" % number)) for number in range(300)]
    assert CLIENT.post(f"{address}gradio_api/upload", files=names).status_code == 200
    assert len(kept(place)) == MOST_FILES
    for number in range(3):
        upload(address, f"later {number}.png", b"later %d" % number)
    assert len(kept(place)) == MOST_FILES
    assert {f"later {number}.png" for number in range(3)} <= {path.name for path in kept(place)}
    lengthy = str(600 * 2**20)
    assert status_of(address, "/gradio_api/upload", "POST", Content_Length=lengthy) == 413


def test_it_ends_quietly_with_ctrl_c(address, server, place):
    before = len(server.output)
    assert CLIENT.get(address).status_code == 200
    server.send_signal(signal.SIGINT)
    assert server.wait(30) == 0
    assert server.output[before:].strip() == ""
    assert kept(place) == []  # and a test above has uploaded something


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_it_takes_its_uploads_along_when_it_is_ended(place, number):
    (place / "uploads").mkdir(exist_ok=True)
    (place / "uploads" / "of somebody").write_text("kept")
    process = start(place, "--model", "model", "--allow-host", "photos.example.org")
    try:
        address = address_of(process)
        upload(address, "1.png", (place / "photos" / "1.png").read_bytes())
        assert sorted(path.name for path in kept(place)) == ["1.png", "of somebody"]
        assert status_of(address, "/config", Host="photos.example.org") == 200
        proxied = {"Host": "127.0.0.1", "Origin": "https://photos.example.org"}
        assert status_of(address, "/config", **proxied) == 200
        process.send_signal(number)
        assert process.wait(30) == 0
    finally:
        process.kill()
    assert [path.name for path in kept(place)] == ["of somebody"]
    assert not list((place / "uploads").glob(f"{PREFIX}*"))
    (place / "uploads" / "of somebody").unlink()
