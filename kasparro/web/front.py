"""The outermost application: what every request meets first, and the short way to answers that are ready."""

import asyncio
import logging
import time

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kasparro.web import problems
from kasparro.web.answers import NO_BODY, matches
from kasparro.web.caching import Caching
from kasparro.web.encodings import IDENTITY, chosen
from kasparro.web.exchange import Exchange, request_id
from kasparro.web.problems import Problem

log = structlog.get_logger()

# The bodies that this API takes are a token's worth of JSON at most.
BODY_BYTES = 1_024

# The headers that somebody here reads.
_READ = frozenset(
    {b"accept-encoding", b"content-length", b"if-none-match", b"transfer-encoding", b"x-request-id"}
)


class Front:
    """Gives every request an Exchange and every answer its headers; an error nobody caught becomes a 500.

    A GET that was answered before, from data that is still the newest, gets the same bytes without more ado.
    """

    def __init__(self, app: ASGIApp, caching: Caching) -> None:
        self._app = app
        self._kept = caching.kept
        self._version = caching.version
        self._common = [(b"x-content-type-options", b"nosniff")]
        # Asked once: a call that logs nothing costs as much as the look-up of an answer.
        self._tells = structlog.get_logger().is_enabled_for(logging.DEBUG)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass the lifespan on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        headers: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            if name in _READ:
                headers[name] = b"%b, %b" % (headers[name], value) if name in headers else value
        if (
            started < self._version.vouched_until
            and scope["method"] in {"GET", "HEAD"}
            and (answer := self._kept.spelt((scope["raw_path"], scope["query_string"]))) is not None
            and not (headers and (b"content-length" in headers or b"transfer-encoding" in headers))
        ):
            accepted = headers.get(b"accept-encoding")
            variant = answer.variants.get(IDENTITY if accepted is None else chosen(accepted))
            if variant is not None:
                asked = headers.get(b"if-none-match")
                unchanged = asked is not None and matches(asked, variant.etag)
                told_id = request_id(headers.get(b"x-request-id"))
                await send(
                    {
                        "type": "http.response.start",
                        "status": 304 if unchanged else 200,
                        "headers": [
                            *(variant.unchanged if unchanged else variant.headers),
                            *self._common,
                            (b"x-request-id", told_id),
                            (
                                b"server-timing",
                                b"total;dur=%.2f, cache;desc=hit" % ((time.perf_counter() - started) * 1e3),
                            ),
                        ],
                    }
                )
                await send(NO_BODY if unchanged else variant.message)
                if self._tells:
                    self._tell(scope, 304 if unchanged else 200, started, told_id.decode())
                return
        await self._answer(scope, receive, send, Exchange(headers, started), _refusal(scope, headers))

    async def _answer(
        self, scope: Scope, receive: Receive, send: Send, exchange: Exchange, refusal: Problem | None
    ) -> None:
        scope["kasparro.exchange"] = exchange
        # Starlette's routes raise what they have no answer to only where there is an app to catch it.
        scope["app"] = self._app
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    *self._common,
                    (b"x-request-id", exchange.request_id.encode()),
                    (b"server-timing", exchange.server_timing()),
                ]
            await send(message)

        try:
            app = self._app if refusal is None else problems.answer(scope, refusal)
            await app(scope, receive, send_with_headers)
        except asyncio.CancelledError:
            # The service stops, and this request had its time; raised on, uvicorn would log it as an error.
            log.warning("cut off by the stop", path=scope["path"], request_id=exchange.request_id)
        except Exception:
            log.exception("error", path=scope["path"], request_id=exchange.request_id)
            if status:
                # The answer has begun: only cutting the line tells the client that it is not whole.
                raise
            problem = Problem(500, "Something went wrong here; the log tells what, under this request_id.")
            await problems.answer(scope, problem)(scope, receive, send_with_headers)
        if self._tells:
            self._tell(scope, status, exchange.started, exchange.request_id)

    def _tell(self, scope: Scope, status: int, started: float, told_id: str) -> None:
        log.debug(
            "answered",
            method=scope["method"],
            path=scope["path"],
            status=status,
            ms=round((time.perf_counter() - started) * 1e3, 2),
            request_id=told_id,
        )


def _refusal(scope: Scope, headers: dict[bytes, bytes]) -> Problem | None:
    # A body that nobody reads, or that is too large.
    if b"transfer-encoding" in headers:
        return Problem(411, "A body comes with its Content-Length.", headers={"Connection": "close"})
    length = headers.get(b"content-length", b"0")
    if scope["method"] in {"GET", "HEAD"} and length.strip(b"0"):
        return Problem(400, "A GET request has no body here.", headers={"Connection": "close"})
    if not length.isdigit() or len(length) > 6 or int(length) > BODY_BYTES:
        detail = f"A body has {BODY_BYTES} bytes at most."
        return Problem(413, detail, headers={"Connection": "close"})
    return None
