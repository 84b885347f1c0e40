"""The outermost application: what every request meets first, and the short way to answers that are ready."""

import asyncio
import logging
import re
import time
from collections.abc import Callable

import structlog
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kasparro.errors import AlreadyLogged, KasparroError, one_line
from kasparro.log_rate import RateLimitedLog
from kasparro.web.cache.response import NO_BODY, HeaderList, matches
from kasparro.web.http import problems
from kasparro.web.http.addresses import TrustedProxies
from kasparro.web.http.connections import Connection
from kasparro.web.http.context import HIT, RequestContext, request_id
from kasparro.web.http.cors import Cors
from kasparro.web.http.disconnects import ResponseAborted
from kasparro.web.http.encodings import IDENTITY, choose_encoding
from kasparro.web.http.problems import Problem
from kasparro.web.service import Service

log = structlog.get_logger()
client_log = RateLimitedLog(log)

# The bodies that this API takes are a token's worth of JSON at most.
BODY_BYTES = 1_024

# The headers that somebody here reads.
_READ = frozenset(
    {
        b"accept-encoding",
        b"access-control-request-method",
        b"authorization",
        b"content-length",
        b"host",
        b"if-none-match",
        b"origin",
        b"transfer-encoding",
        b"x-api-key",
        b"x-forwarded-for",
        b"x-request-id",
    }
)

# The value of Host: a name or address with an optional port, or nothing (RFC 9110, 7.2; RFC 3986, 3.2.2).
_HOST = re.compile(rb"(?:\[[0-9A-Za-z:.%_~-]+\]|(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)(?::[0-9]*)?")

# What ends a response that has begun, by no fault of the code: the database, or the time that it may take.
_INTERRUPTIONS = (KasparroError, TimeoutError)


# Clients of other APIs send their keys as parameters, such as x_cg_demo_api_key.
_CREDENTIAL = re.compile(r"([^&=]*(?:key|token|secret|passw)[^&=]*=)[^&]+", re.IGNORECASE)


class ServiceMiddleware:
    """Admits every request or refuses it, counts it, and gives every answer its headers; an error nobody
    caught becomes a 500.

    A GET that was answered before, from data that is still the newest, gets the same bytes without more ado.
    `route_of` names the route of what is refused before any route is asked.
    """

    def __init__(self, app: ASGIApp, service: Service, route_of: Callable[[Scope], str]) -> None:
        self._app = app
        self._route_of = route_of
        self._kept = service.cache_policy.kept
        self._version = service.cache_policy.version
        self._meter = service.request_metrics
        self._access = service.access if service.access.guards else None
        self._proxies = TrustedProxies(service.settings.trusted_proxies)
        self._cors = Cors(service.settings.cors_origins)
        self._always = [(b"x-content-type-options", b"nosniff"), *self._cors.always]
        # Asked once: a call that logs nothing costs as much as the look-up of an answer.
        self._logs_access = structlog.get_logger().is_enabled_for(logging.DEBUG)

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
        if self._proxies and b"x-forwarded-for" in headers and scope["client"]:
            peer = scope["client"][0]
            scope["client"] = self._proxies.client(peer, headers[b"x-forwarded-for"]), 0
        added = self._always
        key, refusal = None, _wrong_host(scope, headers)
        if self._access is not None and refusal is None:
            key, told, refusal = self._access.admit(scope, headers, started)
            added = [*added, *told]
            if key is not None:
                self._meter.count_key(key)
        if b"origin" in headers:
            added = [*added, *self._cors.headers(headers[b"origin"])]
        if refusal is not None or not await self._send_ready(scope, headers, added, started, send, key=key):
            context = RequestContext(headers, added, started)
            context.key_name = key
            refusal = refusal or _refusal(scope, headers)
            preflight = self._cors.preflight(scope, headers)
            scope["kasparro.context"] = context
            if refusal is not None:
                context.route = self._route_of(scope)
                app: ASGIApp = problems.answer(scope, refusal)
            elif preflight is not None:
                app = Response(status_code=204)
                context.extra_headers = [*added, *preflight]
            else:
                app = self._app
            await self._answer(app, context, scope, receive, send)

    async def _send_ready(
        self,
        scope: Scope,
        headers: dict[bytes, bytes],
        added: HeaderList,
        started: float,
        send: Send,
        *,
        key: str | None,
    ) -> bool:
        # Sends the answer where it needs nothing but sending; otherwise does nothing, and says so.
        if (
            started > self._version.fresh_until
            or scope["method"] not in {"GET", "HEAD"}
            or b"content-length" in headers
            or b"transfer-encoding" in headers
        ):
            return False
        answer = self._kept.spelt((scope["raw_path"], scope["query_string"]))
        if answer is None:
            return False
        accepted = headers.get(b"accept-encoding")
        variant = answer.variants.get(IDENTITY if accepted is None else choose_encoding(accepted))
        if variant is None:
            return False
        asked = headers.get(b"if-none-match")
        told_id = request_id(headers.get(b"x-request-id"))
        if asked is not None and matches(asked, variant.etag):
            status, own, body = 304, variant.unchanged, NO_BODY
        else:
            status, own, body = 200, variant.headers, variant.message
        taken = time.perf_counter() - started
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [
                    *own,
                    *added,
                    (b"x-request-id", told_id),
                    (b"server-timing", b"total;dur=%.2f, cache;desc=hit" % (taken * 1e3)),
                ],
            }
        )
        await send(body)
        self._meter.count((variant.route, scope["method"], status, HIT), time.perf_counter() - started)
        if self._logs_access:
            _log_access(scope, key, status, started, told_id.decode())
        return True

    async def _answer(
        self, app: ASGIApp, context: RequestContext, scope: Scope, receive: Receive, send: Send
    ) -> None:
        # Starlette's routes raise what they have no answer to only where there is an app to catch it.
        scope["app"] = self._app
        connection: Connection | None = scope.get("kasparro.connection")
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    *context.extra_headers,
                    (b"x-request-id", context.request_id.encode()),
                    (b"server-timing", context.server_timing()),
                ]
                if status >= 400 and connection is not None and connection.pipelining:
                    # The requests behind a refused one would be refused in their turn: that work is saved.
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        try:
            await app(scope, receive, send_with_headers)
        except asyncio.CancelledError:
            # The service stops, and this request had its time; raised on, uvicorn would log it as an error.
            client_log.warning(
                "request_cancelled_by_shutdown", path=scope["path"], request_id=context.request_id
            )
        except ResponseAborted:
            # The rule that ended it has logged it.
            _end(connection)
        except Exception as error:  # noqa: BLE001 - whatever it is, this request ends and is logged
            fields = {"path": scope["path"], "request_id": context.request_id}
            # Starlette wraps what a handler would have answered before the response began.
            cause = error.__cause__ or error
            if status and isinstance(cause, _INTERRUPTIONS):
                client_log.warning("response_interrupted", reason=one_line(cause), **fields)
            else:
                client_log.fault("request_failed", error, **fields)
            if status:
                _end(connection)
            else:
                problem = Problem(
                    500, "Something went wrong here; the log tells what, under this request_id."
                )
                await problems.answer(scope, problem)(scope, receive, send_with_headers)
        finally:
            label = (context.route, scope["method"], status, context.cache)
            self._meter.count(label, time.perf_counter() - context.started)
        if self._logs_access:
            _log_access(scope, context.key_name, status, context.started, context.request_id)


def _log_access(scope: Scope, key: str | None, status: int, started: float, request_id: str) -> None:
    # The access log: who asked for what, and what became of it.
    client = scope["client"]
    log.debug(
        "request_answered",
        address=client[0] if client else None,
        key=key,
        method=scope["method"],
        path=scope["path"],
        query=_CREDENTIAL.sub(r"\1***", scope["query_string"].decode("latin-1")),
        status=status,
        ms=round((time.perf_counter() - started) * 1e3, 2),
        request_id=request_id,
    )


def _end(connection: Connection | None) -> None:
    # The response has begun: only the end of the connection tells the client that it is incomplete. Any ASGI
    # server ends it for an application that raises; ours needs no error in its log for it.
    if connection is None:
        raise AlreadyLogged("the response is cut")
    connection.cut()


def _wrong_host(scope: Scope, headers: dict[bytes, bytes]) -> Problem | None:
    # Proxies and servers that read such a request differently can be played off against each other
    # (RFC 9112, 3.2). Several values have been joined by a comma and a space, which no value may hold.
    host = headers.get(b"host")
    if host is None:
        if scope["http_version"] == "1.0":
            return None
        detail = "A request of HTTP/1.1 has a Host header."
    elif _HOST.fullmatch(host):
        return None
    else:
        detail = "A request has one Host header: a name or an address, with or without a port."
    return Problem(400, detail, headers={"Connection": "close"})


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
