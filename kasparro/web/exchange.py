"""What surrounds the answer to every request: its id, timing, headers and log line, and the last resort."""

import asyncio
import re
import time
import uuid

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kasparro.web import problems
from kasparro.web.problems import Problem

log = structlog.get_logger()

# The bodies that this API takes are a token's worth of JSON at most.
BODY_BYTES = 1_024

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class Exchange:
    """What is known of a request beside what it asks for. Handlers add to `database_s` what they waited."""

    __slots__ = ("database_s", "request_id", "started")

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.started = time.perf_counter()
        self.database_s: float | None = None

    def server_timing(self) -> str:
        """How long it took so far, as the header of that name tells it (milliseconds)."""
        total = f"total;dur={(time.perf_counter() - self.started) * 1e3:.2f}"
        return total if self.database_s is None else f"{total}, db;dur={self.database_s * 1e3:.2f}"


class ExchangeMiddleware:
    """Gives every request an Exchange and every answer its headers; an error nobody caught becomes a 500."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        told_id, refusal = _look(scope)
        exchange = scope["kasparro.exchange"] = Exchange(told_id or uuid.uuid4().hex)
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", exchange.request_id.encode()),
                    (b"server-timing", exchange.server_timing().encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        try:
            app = self.app if refusal is None else problems.answer(scope, refusal)
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
        log.debug(
            "answered",
            method=scope["method"],
            path=scope["path"],
            status=status,
            ms=round((time.perf_counter() - exchange.started) * 1e3, 2),
            request_id=exchange.request_id,
        )


def _look(scope: Scope) -> tuple[str | None, Problem | None]:
    # One walk over the headers: the client's request id, and whether it sends a body nobody reads.
    request_id = None
    refusal = None
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            if _REQUEST_ID.fullmatch(value):
                request_id = value.decode()
        elif name == b"content-length":
            if scope["method"] in {"GET", "HEAD"} and value.strip(b"0"):
                refusal = Problem(400, "A GET request has no body here.", headers={"Connection": "close"})
            elif not value.isdigit() or len(value) > 6 or int(value) > BODY_BYTES:
                detail = f"A body has {BODY_BYTES} bytes at most."
                refusal = Problem(413, detail, headers={"Connection": "close"})
        elif name == b"transfer-encoding":
            refusal = Problem(411, "A body comes with its Content-Length.", headers={"Connection": "close"})
    return request_id, refusal
