"""The guard in front of the app: whose requests are answered, and how large they may be.

A foreign page can make a browser on this machine ask this server: under a name of its own that leads here (DNS
rebinding), or from its own origin. Both are refused before gradio sees them.
"""

import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from clip_itm.retrieval.app_uploads import Uploads

LOCAL = ("localhost", "127.0.0.1", "::1")
EVERYWHERE = ("0.0.0.0", "::")
LARGEST_REQUEST = 2**20  # bytes of a request that is no upload: sentences, captions, names of uploads
HOST = re.compile(r"(\[(?P<ipv6>[0-9a-f:.]+)\]|(?P<name>[\w.-]+))(:\d+)?", re.ASCII | re.IGNORECASE)


@dataclass
class Names:
    """The names that a server goes by: those of this machine, and `others`, under which a proxy shows it."""

    host: str  # where it listens
    others: set[str]

    @classmethod
    def of(cls, host: str, others: Iterable[str] = ()) -> "Names":
        """Raises ValueError for what is not the name of a host."""
        for name in others:
            if name_of(name) != name.lower():
                raise ValueError(f"{name!r} is not the name of a host; expected one such as photos.example.org")
        return cls(host.strip("[]").lower(), {name.lower() for name in others})

    def include(self, host: str) -> bool:
        """Whether the value of a Host header is one of them; a foreign name may lead here, an address does not."""
        name = name_of(host)
        if name is None or name in (*LOCAL, self.host, *self.others):
            return name is not None
        if self.host not in EVERYWHERE:
            return False
        own = socket.gethostname().lower()
        return is_address(name) or name in (own, f"{own}.local")

    def include_origin(self, origin: str, host: str) -> bool:
        """Whether a page of `origin` is a page of this server, which was asked as `host`."""
        scheme, _, place = origin.partition("://")
        return scheme in ("http", "https") and (place.lower() == host.lower() or name_of(place) in self.others)

    def add(self, address: str) -> None:
        """Add the name under which the world sees the server, through a tunnel."""
        self.others.add(urlsplit(address).hostname)


def name_of(host: str) -> str | None:
    """The name in NAME:PORT, lower case; None if it is nothing of the kind."""
    found = HOST.fullmatch(host)
    return found and (found["ipv6"] or found["name"]).lower()


def is_address(name: str) -> bool:
    try:
        return bool(ip_address(name))
    except ValueError:
        return False


class Guard:
    """ASGI middleware around the app. `names` None: any Host and Origin (in a Space, which is public)."""

    def __init__(self, app: ASGIApp, names: Names | None, uploads: Uploads):
        self.app, self.names, self.uploads = app, names, uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if problem := self.foreign(headers) or self.oversized(scope, headers):
            await refuse(*problem, scope, receive, send)
        elif brings_a_body(scope):
            with self.uploads.coming(length_of(headers)):
                await self.app(scope, receive, self.uploads.making_room(send))
        else:
            await self.app(scope, receive, send)

    def foreign(self, headers: Headers) -> tuple[HTTPStatus, str] | None:
        if self.names is None:
            return None
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self.names.include(hosts[0]):
            return HTTPStatus.BAD_REQUEST, (
                f"This server does not answer as {hosts[0] if hosts else 'nobody'!r}. To serve it under this "
                "name, start it with --allow-host."
            )
        if not all(self.names.include_origin(origin, hosts[0]) for origin in headers.getlist("origin")):
            return HTTPStatus.FORBIDDEN, "This server does not answer pages of other sites."
        return None

    def oversized(self, scope: Scope, headers: Headers) -> tuple[HTTPStatus, str] | None:
        if not brings_a_body(scope):
            return None
        length = length_of(headers)
        if length is None:
            return HTTPStatus.LENGTH_REQUIRED, "A request with content says its length."
        if not is_upload(scope):
            most = LARGEST_REQUEST
            return None if length <= most else (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"At most {most:,} bytes.")
        if self.uploads.has_room(length):
            return None
        return HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "Too much is being uploaded; try again with less, or later."


def brings_a_body(scope: Scope) -> bool:
    return scope["type"] == "http" and scope["method"] not in ("GET", "HEAD", "OPTIONS")


def is_upload(scope: Scope) -> bool:
    return scope["path"].rstrip("/").endswith("/upload")


def length_of(headers: Headers) -> int | None:
    """Bytes of a request's content; None if it comes in chunks, as many as the sender likes."""
    if "transfer-encoding" in headers:
        return None
    length = headers.get("content-length", "0")
    return int(length) if length.isdecimal() else None


async def refuse(status: HTTPStatus, why: str, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    await PlainTextResponse(f"{why}\n", status)(scope, receive, send)
