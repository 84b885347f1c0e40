"""The outermost ASGI application: admits, counts and completes every request, and answers from the cache."""

import asyncio
import logging
import re
import time
from collections.abc import Callable

import structlog
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bind_contextvars

from kasparro.errors import AlreadyLogged, KasparroError, one_line
from kasparro.log_rate import RateLimitedLog
from kasparro.web.http import problems
from kasparro.web.http.addresses import TrustedProxies
from kasparro.web.http.connections import Connection
from kasparro.web.http.context import HIT, RequestContext, request_id, shown_query
from kasparro.web.http.cors import Cors
from kasparro.web.http.disconnects import ResponseAborted
from kasparro.web.http.encodings import IDENTITY, choose_encoding
from kasparro.web.http.headers import HeaderList
from kasparro.web.http.problems import Problem
from kasparro.web.service import Service

log = structlog.get_logger()
client_log = RateLimitedLog(log)

# No request of this API needs a larger body.
BODY_BYTES = 1_024

# Only these headers are read, so only these are copied.
_USED_HEADERS = frozenset(
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

# Errors of the database and timeouts can end a response that has begun. They are not errors in the code.
_INTERRUPTIONS = (KasparroError, TimeoutError)


class ServiceMiddleware:
    """Admits or rejects every request, counts it, and adds the headers that every response has.

    If the cache has a response for the current data version, it is sent from here, without the application.
    An unhandled exception becomes a 500. `route_of` returns the route of a request that is rejected here.
    """

    def __init__(self, app: ASGIApp, service: Service, route_of: Callable[[Scope], str]) -> None:
        self._app = app
        self._route_of = route_of
        self._responses = service.cache_policy.responses
        self._version = service.cache_policy.version
        self._metrics = service.request_metrics
        self._access = service.access if service.access.active else None
        self._shares_limits = service.settings.shared_limits
        self._proxies = TrustedProxies(service.settings.trusted_proxies)
        self._cors = Cors(service.settings.cors_origins)
        self._always = [(b"x-content-type-options", b"nosniff"), *self._cors.always]
        # Computed once: a log call that writes nothing takes as long as a lookup in the cache.
        self._logs_access = structlog.get_logger().is_enabled_for(logging.DEBUG)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Lifespan messages go to the application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        headers: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            if name in _USED_HEADERS:
                headers[name] = b"%b, %b" % (headers[name], value) if name in headers else value
        if self._proxies and b"x-forwarded-for" in headers and scope["client"]:
            peer = scope["client"][0]
            scope["client"] = self._proxies.client(peer, headers[b"x-forwarded-for"]), 0
        extra = self._always
        key_name, problem = None, _invalid_host(scope, headers)
        id_ = request_id(headers.get(b"x-request-id"))
        if self._access is not None and problem is None:
            bind_contextvars(request_id=id_.decode())
            if self._shares_limits:
                key_name, limit_headers, problem = await self._access.admit_shared(scope, headers, started)
            else:
                key_name, limit_headers, problem = self._access.admit(scope, headers, started)
            extra = [*extra, *limit_headers]
            if key_name is not None:
                self._metrics.count_key(key_name)
        if b"origin" in headers:
            extra = [*extra, *self._cors.headers(headers[b"origin"])]
        if problem is None and await self._send_cached(
            scope, headers, extra, started, send, key_name=key_name, id_=id_
        ):
            return
        context = RequestContext(headers, extra, started, id_)
        context.key_name = key_name
        scope["kasparro.context"] = context
        problem = problem or _invalid_body(scope, headers)
        preflight = self._cors.preflight(scope, headers)
        if problem is not None:
            context.route = self._route_of(scope)
            app: ASGIApp = problems.response(scope, problem)
        elif preflight is not None:
            app = Response(status_code=204)
            context.extra_headers = [*extra, *preflight]
        else:
            app = self._app
        await self._run(app, context, scope, receive, send)

    async def _send_cached(
        self,
        scope: Scope,
        headers: dict[bytes, bytes],
        extra: HeaderList,
        started: float,
        send: Send,
        *,
        key_name: str | None,
        id_: bytes,
    ) -> bool:
        # If the cache has the response in an encoding that the client accepts, sends it and returns True.
        if (
            started > self._version.fresh_until
            or scope["method"] not in {"GET", "HEAD"}
            or b"content-length" in headers
            or b"transfer-encoding" in headers
        ):
            return False
        response = self._responses.find_alias((scope["raw_path"], scope["query_string"]))
        if response is None:
            return False
        accepted = headers.get(b"accept-encoding")
        encoded = response.encodings.get(IDENTITY if accepted is None else choose_encoding(accepted))
        if encoded is None:
            return False
        condition = headers.get(b"if-none-match")
        if (
            condition is not None
            and condition != encoded.etag
            and response.oldest_version < self._version.newest_named(condition)
        ):
            # Another process has given the client a newer version.
            return False
        status, own, body = encoded.reply(condition)
        duration = time.perf_counter() - started
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [
                    *own,
                    *extra,
                    (b"x-request-id", id_),
                    (b"server-timing", b"total;dur=%.2f, cache;desc=hit" % (duration * 1e3)),
                ],
            }
        )
        await send(body)
        self._metrics.count((encoded.route, scope["method"], status, HIT), time.perf_counter() - started)
        if self._logs_access:
            _log_access(scope, key_name, status, started, id_.decode())
        return True

    async def _run(
        self, app: ASGIApp, context: RequestContext, scope: Scope, receive: Receive, send: Send
    ) -> None:
        # If the scope has an application, Starlette's routes raise HTTP errors instead of sending plain text.
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
                    # The pipelined requests would probably fail too. Closing the connection saves that work.
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        # Every line that is logged for this request has its id, also in the tasks that it starts.
        bind_contextvars(request_id=context.request_id)
        try:
            await app(scope, receive, send_with_headers)
        except asyncio.CancelledError:
            # The service stops, and the time for running requests is over. uvicorn would log an error here.
            client_log.warning("request_cancelled_by_shutdown", path=scope["path"])
        except ResponseAborted:
            _abort(connection)
        except Exception as error:  # noqa: BLE001 - any error ends this request and is logged
            fields = {"path": scope["path"], **context.database_fields()}
            # If the error has an exception handler but the response has begun, Starlette raises a
            # RuntimeError whose cause is the error.
            cause = error.__cause__ or error
            if status and isinstance(cause, _INTERRUPTIONS):
                client_log.warning("response_interrupted", reason=one_line(cause), **fields)
            else:
                client_log.fault("request_failed", error, **fields)
            if status:
                _abort(connection)
            else:
                problem = Problem(500, "Internal error. See the server log for this request_id.")
                await problems.response(scope, problem)(scope, receive, send_with_headers)
        finally:
            label = (context.route, scope["method"], status, context.cache)
            duration_s = context.duration_s
            if duration_s is None:
                duration_s = time.perf_counter() - context.started
            self._metrics.count(label, duration_s)
        if self._logs_access:
            _log_access(scope, context.key_name, status, context.started, context.request_id)


def _log_access(scope: Scope, key_name: str | None, status: int, started: float, request_id: str) -> None:
    client = scope["client"]
    log.debug(
        "request_answered",
        address=client[0] if client else None,
        key=key_name,
        method=scope["method"],
        path=scope["path"],
        query=shown_query(scope),
        status=status,
        ms=round((time.perf_counter() - started) * 1e3, 2),
        request_id=request_id,
    )


def _abort(connection: Connection | None) -> None:
    # The response has begun, so only a closed connection shows the client that it is incomplete. Our server
    # can close it without logging an error. Other ASGI servers close it if the application raises.
    if connection is None:
        raise AlreadyLogged("the response was aborted")
    connection.abort()


def _invalid_host(scope: Scope, headers: dict[bytes, bytes]) -> Problem | None:
    # An attacker can exploit a Host that a proxy and a server interpret differently (RFC 9112, 3.2). Several
    # Host headers were joined by a comma and a space, which no valid value contains.
    host = headers.get(b"host")
    if host is None:
        if scope["http_version"] == "1.0":
            return None
        detail = "An HTTP/1.1 request needs a Host header."
    elif _HOST.fullmatch(host):
        return None
    else:
        detail = "A request has exactly one Host header: a name or an address, with or without a port."
    return Problem(400, detail, headers={"Connection": "close"})


def _invalid_body(scope: Scope, headers: dict[bytes, bytes]) -> Problem | None:
    if b"transfer-encoding" in headers:
        return Problem(411, "A request body needs a Content-Length.", headers={"Connection": "close"})
    length = headers.get(b"content-length", b"0")
    if scope["method"] in {"GET", "HEAD"} and length.strip(b"0"):
        return Problem(400, "A GET or HEAD request must not have a body.", headers={"Connection": "close"})
    if not length.isdigit() or len(length) > 6 or int(length) > BODY_BYTES:
        detail = f"A request body has at most {BODY_BYTES} bytes."
        return Problem(413, detail, headers={"Connection": "close"})
    return None
