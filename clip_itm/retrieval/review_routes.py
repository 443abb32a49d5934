"""The review over HTTP: a page, pairs and photos by the hash of their pair, and marks that come in.

What a request names is a hash, an order or a group of the audit, never a file. Whose requests are answered, and how
large they may be, is decided before (`app_guard.py`).
"""

import getpass
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from functools import partial
from http import HTTPStatus
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from clip_itm.data.marks import Mark, now
from clip_itm.pages import render
from clip_itm.retrieval.review import MOST_SHOWN, ORDERS, List, NoSuchPairError, Review, mark_of
from clip_itm.visible import visible

SIDES = {"small": 640, "large": 1600}  # longer side of a photo, pixels
MOST_MARKS = 1000  # of one request
MOST_CHARACTERS = 10_000  # of a caption that somebody writes
MOST_OF_A_NAME = 100  # characters, of an author
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "frame-ancestors 'none'",  # no other page shows buttons of this one
}


def review_routes(review: Review) -> list[Route]:
    """What is served below /review."""
    place = hashlib.sha256(str(review.file.path.resolve()).encode()).hexdigest()[:16]

    def answer(function: Callable[[QueryParams], dict], query: QueryParams) -> Response:
        """What a function returns as JSON; what it raises as a status and a sentence."""
        try:
            return JSONResponse(function(query), headers=HEADERS)
        except NoSuchPairError as error:
            return refused(HTTPStatus.NOT_FOUND, "this audit has no such pair", pairs=list(error.args))
        except OSError as error:
            return refused(HTTPStatus.INSUFFICIENT_STORAGE, f"{review.file.path.name}: {error.strerror or error}")
        except ValueError as error:  # the path of the file remains private
            why = str(error).replace(str(review.file.path), review.file.path.name)
            return refused(HTTPStatus.BAD_REQUEST, why)

    def page(request: Request) -> Response:
        return HTMLResponse(review_page(review, place), headers=HEADERS)

    def state(query: QueryParams) -> dict:
        said = review.said()
        asked = query.getlist("pair")[:MOST_SHOWN]
        return {**review.state(list_of(query)), "said": {pair: mark_of(said, pair) for pair in asked}}

    def pairs(query: QueryParams) -> dict:
        shown = list_of(query)
        if only := query.get("only"):
            return {"pairs": [review.pair(shown, only)], **review.state(shown)}
        flags = {name: query.get(name) == "yes" for name in ("backwards", "unmarked")}
        found = review.pairs(shown, whole(query, "start"), whole(query, "count"), **flags)
        return {"pairs": found, **review.state(shown)}

    def groups(query: QueryParams) -> dict:
        return {"groups": review.groups()}

    def members(query: QueryParams) -> dict:
        return review.members(list_of(query))

    def photo(request: Request) -> Response:
        side = SIDES.get(request.path_params["size"])
        try:
            if side is None:
                raise NoSuchPairError(f"expected {' or '.join(SIDES)}")
            jpeg = review.photo(request.path_params["pair"], side)
        except ValueError as error:  # it may name the file of the photo, which remains private
            why = str(error) if isinstance(error, NoSuchPairError) else "the photo cannot be read"
            return refused(HTTPStatus.NOT_FOUND, why)
        return Response(jpeg, media_type="image/jpeg", headers={**HEADERS, "Cache-Control": "private, max-age=600"})

    async def marks(request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            return refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "expected application/json")
        if request.query_params.get("place") != place:
            return refused(HTTPStatus.CONFLICT, "this server keeps the marks of another audit; reload the page")
        try:
            sent = marks_of(await request.body())
        except ValueError as error:
            return refused(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
        return await run_in_threadpool(answer, partial(saved, sent), request.query_params)

    def saved(sent: list[Mark], query: QueryParams) -> dict:
        review.add(sent)
        return state(query)

    def get(path: str, function: Callable[[QueryParams], dict]) -> Route:
        return Route(path, lambda request: answer(function, request.query_params), methods=["GET"])

    return [
        Route("/review", page, methods=["GET"]),
        get("/review/state", state),
        get("/review/pairs", pairs),
        get("/review/groups", groups),
        get("/review/members", members),
        Route("/review/photos/{pair}/{size}", photo, methods=["GET"]),
        Route("/review/marks", marks, methods=["POST"]),
    ]


def review_page(review: Review, place: str) -> str:
    """The page; `place` tells marks of this file from those of others in the browser."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # the user has no name here
        user = ""
    return render(
        "review_page.html",
        title="Review of captions",
        file=review.file.path.name,
        pairs=len(review.table),
        orders=ORDERS,
        place=place,
        user=user,
    )


def refused(status: HTTPStatus, why: str, **more: Any) -> Response:
    return JSONResponse({"why": visible(why), **more}, status, headers=HEADERS)


def list_of(query: QueryParams) -> List:
    """Raises ValueError for an unknown order."""
    return List(query.get("order", "worst"), query.get("group", ""), query.get("text", ""))


def whole(query: QueryParams, name: str) -> int:
    word = query.get(name, "")
    if not (word.isascii() and word.isdecimal() and len(word) < 16):
        raise ValueError(f"{name} is {word[:40]!r}; expected a whole number")
    return int(word)


def marks_of(body: bytes) -> list[Mark]:
    """Raises ValueError for anything but a list of marks as a page sends it."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise ValueError("expected JSON") from None
    if not isinstance(content, list) or not all(isinstance(one, dict) for one in content):
        raise ValueError("expected a list of marks")
    if len(content) > MOST_MARKS:
        raise ValueError(f"{len(content):,} marks are too many at once; expected at most {MOST_MARKS:,}")
    return [checked(Mark.from_json(one)) for one in content]


def checked(mark: Mark) -> Mark:
    """A mark with nothing in it but what a person said: the audit knows the rest."""
    text, author = mark.text if mark.mark == "fixed" else None, " ".join(mark.author.split())
    for name, value, most in (("text", text or "", MOST_CHARACTERS), ("author", author, MOST_OF_A_NAME)):
        if len(value) > most:
            raise ValueError(f"{name} has {len(value):,} characters; expected at most {most:,}")
        if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise ValueError(f"{name} is no text")  # half of a character, which no file in UTF-8 can hold
    try:
        is_known = not mark.time or datetime.fromisoformat(mark.time).tzinfo is not None
    except ValueError:
        is_known = False
    if not is_known:
        raise ValueError(f"time is {mark.time[:40]!r}; expected ISO 8601 with a time zone")
    return replace(mark, text=text and text.strip(), author=author, time=mark.time or now(), image_id="", caption="")
