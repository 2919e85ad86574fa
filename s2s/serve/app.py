"""The application: the page, the JSON API, and what is refused before either is reached.

GET / the page · POST /api/translate · GET /api/models · GET /healthz

Every answer that is not a success is ``{"status": 422, "errors": ["WHERE: WHAT; WHAT TO DO"]}``. What a request takes
is bounded: its body and sentences (`s2s.serve.asked`), the time to send it, the time to wait, and how many there are.
"""

from __future__ import annotations

import asyncio
import re
import traceback
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http import HTTPStatus
from ipaddress import ip_address
from typing import Any, TypeVar, cast

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from s2s import __version__
from s2s.analysis.pages import policy_of, render
from s2s.errors import S2SError
from s2s.progress import say
from s2s.serve.asked import BEAM, BODY, SENTENCES, TOKENS, Asked, Refused, read
from s2s.serve.connection import PATIENCE, error_body
from s2s.serve.desk import Desk, Job, Offered, Way
from s2s.strictjson import json_line

T = TypeVar("T")
_POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'"
_HEADERS = {
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:/@]+)(?::[0-9]{1,5})?", re.IGNORECASE)
_RETRY = "2"
"""Seconds after which to come again."""


def application(
    desk: Desk, models: Sequence[Offered], *, hosts: Collection[str], queue: int, timeout: float
) -> ASGIApp:
    """What answers requests. ``hosts``: names under which the server is known; its addresses always are.

    ``queue``: requests to translate that are taken at once; ``timeout``: seconds that one waits for its answer.
    """
    api = _Api(desk, models, queue, timeout)
    page = render("serve.html", models=[model.facts() for model in models], beam=BEAM, tokens=TOKENS)
    policy = policy_of(page)

    async def index(request: Request) -> Response:
        return Response(page, media_type="text/html", headers={"content-security-policy": policy})

    routes = [
        Route("/", index),
        Route("/healthz", api.health),
        Route("/api/models", api.models),
        Route("/api/translate", api.translate, methods=["POST"]),
    ]
    handlers: dict[Any, Any] = {
        Refused: _refused, HTTPException: _not_routed, ClientDisconnect: _gone, Exception: _failed,
    }  # fmt: skip
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False  # a redirect would name whatever host the client named
    return _Guard(app, hosts)


# --- the API ----------------------------------------------------------------------------------------------------------


class _Api:
    def __init__(self, desk: Desk, models: Sequence[Offered], queue: int, timeout: float) -> None:
        self.desk, self.queue, self.timeout = desk, queue, timeout
        self.offered = {model.name: model for model in models}
        self.reader = ThreadPoolExecutor(1, "read")
        """Takes requests apart, one after the other: a body of a megabyte may become a hundred of lists."""
        self.taken = 0
        """Requests to translate that are being read, or wait for their answer."""

    async def health(self, request: Request) -> Response:
        return _json({"status": "ok", "version": __version__, "requests": self.taken})

    async def models(self, request: Request) -> Response:
        limits = {
            "body_bytes": BODY, "sentences": SENTENCES, "tokens": TOKENS, "beam": BEAM, "requests": self.queue,
            "seconds": self.timeout,
        }  # fmt: skip
        return _json({"models": [model.facts() for model in self.offered.values()], "limits": limits})

    async def translate(self, request: Request) -> Response:
        if self.taken >= self.queue:
            problem = f"server: {self.taken} requests are waiting, as many as may; try again in {_RETRY} seconds"
            raise Refused(429, problem, retry=True)
        self.taken += 1
        try:
            way, translations = await self._answer(await _body(request), request)
        finally:
            self.taken -= 1
        return _json({"model": way.model.name, "update": way.model.trained.update, "translations": translations})

    def _job(self, body: bytes) -> Job:
        """What a request asks for. Raises Refused; takes up to half a second for the longest."""
        asked = read(body)
        model = self._model(asked)
        return Job(Way(model, asked.search(model.search), asked.n_best, asked.attention), model.lines(asked.sentences))

    def _model(self, asked: Asked) -> Offered:
        if asked.model is None:
            return next(iter(self.offered.values()))
        if asked.model not in self.offered:
            raise Refused(422, f"model: there is none of this name; ask for one of {', '.join(self.offered)}")
        return self.offered[asked.model]

    async def _answer(self, body: bytes, request: Request) -> tuple[Way, list[dict[str, Any]]]:
        """How the lines of a request were translated, and what came of it; being read is a part of the wait.

        Raises Refused when time is over, ClientDisconnect when nobody waits for it.
        """
        loop = asyncio.get_running_loop()
        end, gone = loop.time() + self.timeout, asyncio.create_task(_left(request))

        async def ended(work: asyncio.Future[T]) -> T:
            both: set[asyncio.Future[Any]] = {work, gone}
            try:
                await asyncio.wait(both, timeout=max(0.0, end - loop.time()), return_when=asyncio.FIRST_COMPLETED)
                if work.done():
                    return work.result()
                if gone.done():
                    raise ClientDisconnect
                problem = f"server: no answer within {self.timeout:g} seconds; ask for less, or later"
                raise Refused(503, problem, retry=True)
            finally:
                work.cancel()

        try:
            job = await ended(loop.run_in_executor(self.reader, self._job, body))
            self.desk.bring(job)
            try:
                return job.way, await ended(asyncio.wrap_future(job.answer))
            finally:
                self.desk.leave(job)
        finally:
            gone.cancel()


async def _body(request: Request) -> bytes:
    """The body of a request. Raises Refused for one that is no JSON by its head, too large, or too slow."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refused(415, "Content-Type: is not application/json; send JSON and say so")
    declared = request.headers.get("content-length")
    if declared is None and "transfer-encoding" not in request.headers:
        raise Refused(411, "Content-Length: is missing; say how long the body is")
    too_large = Refused(413, f"body: has more than {BODY} bytes; send fewer sentences at once")
    if declared is not None and int(declared) > BODY:  # digits, or the connection had refused it
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(PATIENCE):
            async for chunk in request.stream():
                body += chunk
                if len(body) > BODY:
                    raise too_large
    except TimeoutError:
        raise Refused(408, f"body: was not there within {PATIENCE:g} seconds; send it at once") from None
    return bytes(body)


async def _left(request: Request) -> None:
    """Returns when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


# --- answers ----------------------------------------------------------------------------------------------------------


def _json(value: Any) -> Response:
    return Response(json_line(value) + "\n", media_type="application/json")


def _error(status: int, *problems: str) -> Response:
    return Response(error_body(status, *problems), status, media_type="application/json")


async def _refused(request: Request, error: Exception) -> Response:
    refused = cast(Refused, error)
    answer = _error(refused.status, *refused.problems)
    if refused.retry:
        answer.headers["retry-after"] = _RETRY
    return answer


async def _not_routed(request: Request, error: Exception) -> Response:
    """There is no such path, or it does not take this method."""
    found = cast(HTTPException, error)
    what = f"{request.method} {request.url.path[:200]}: {HTTPStatus(found.status_code).phrase.lower()}"
    answer = _error(found.status_code, f"{what}; the routes are / and /api/translate, /api/models, /healthz")
    answer.headers.update(found.headers or {})
    return answer


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # nobody reads it


async def _failed(request: Request, error: Exception) -> Response:
    """The client is told no more than that; whoever runs the server sees why."""
    if isinstance(error, S2SError):
        say(f"s2s: error: {error}")
    else:
        say("".join(traceback.format_exception(error)).rstrip())
    return _error(500, "server: this request could not be served; the server's log says why")


# --- before and after -------------------------------------------------------------------------------------------------


class _Guard:
    """Serves only who names this server, and puts what browsers should know on every answer.

    A page of another site can make a browser send requests here under that site's name, after having changed the
    address that the name stands for (DNS rebinding); so a name that is not ours is refused. An address cannot be bent.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self._app, self._hosts = app, {"localhost", *(host.lower() for host in hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers["content-security-policy"] = (
                    headers.get("content-security-policy", _POLICY) + "; frame-ancestors 'none'"
                )
            await send(message)

        host = Headers(scope=scope).get("host", "")
        if self._is_ours(host):
            await self._app(scope, receive, send_with_headers)
        else:
            problem = f"Host: {host[:100]!r} is no name of this server; use its address, or start it with --allow-host"
            await _error(400, problem)(scope, receive, send_with_headers)

    def _is_ours(self, host: str) -> bool:
        found = _HOST.fullmatch(host)
        if found is None:
            return False
        name = found[1].strip("[]").lower()
        with suppress(ValueError):
            ip_address(name)
            return True
        return name in self._hosts
