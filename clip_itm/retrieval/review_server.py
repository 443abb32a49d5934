"""The server of a review alone, without a model: it starts within seconds, as it needs neither gradio nor torch."""

import socket
from collections.abc import Sequence
from contextlib import suppress

import uvicorn
from starlette.applications import Starlette
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from clip_itm.retrieval.app_guard import Guard, Names
from clip_itm.retrieval.app_uploads import uploads_of_a_server
from clip_itm.retrieval.review import Review
from clip_itm.retrieval.review_routes import review_routes

KEPT_OPEN = 75  # seconds without a request


def serve_review(review: Review, host: str, port: int, other_names: Sequence[str] = ()) -> None:
    """Run until Ctrl-C or SIGTERM; requests for names that are not its own are refused (`app_guard.py`).

    Raises ValueError if the port is not available, and for what is no name.
    """
    names = Names.of(host, other_names)
    others = [
        Route("/", lambda request: RedirectResponse("review")),
        Route("/favicon.ico", lambda request: Response(status_code=204)),  # which a browser asks for
    ]
    with listening(host, port) as server, uploads_of_a_server() as uploads, suppress(KeyboardInterrupt):
        guarded = Guard(Starlette(routes=[*others, *review_routes(review)]), names, uploads)
        print(f"open http://{address(host)}:{port}/review (Ctrl-C ends it)", flush=True)
        # longer than a busy browser waits between requests: a connection that closes during one is an error there
        settings = {"log_level": "error", "lifespan": "off", "timeout_keep_alive": KEPT_OPEN}
        uvicorn.Server(uvicorn.Config(guarded, **settings)).run(sockets=[server])


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens before its address is printed. Raises ValueError if the port is not available."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host.strip("[]"), port), family=family)
    except OSError as error:
        raise ValueError(f"cannot serve on {host}:{port} ({error}); choose another --port or --host") from None


def address(host: str) -> str:
    """The host as a browser on this machine has to name it."""
    if host in ("0.0.0.0", "::"):
        return "127.0.0.1"
    return f"[{host.strip('[]')}]" if ":" in host else host
