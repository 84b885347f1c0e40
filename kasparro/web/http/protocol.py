"""Limits what one connection may cost: uvicorn's HTTP protocol with bounds on time, bytes and number.

These limits protect a port that clients reach without a proxy. Under another ASGI server, that server's own
limits apply; the application works the same.
"""

import asyncio
import socket
import struct
from functools import lru_cache, partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import quote
from weakref import WeakKeyDictionary

import httptools
import msgspec
import structlog
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from kasparro.web.http import problems
from kasparro.web.http.addresses import TrustedProxies, client_name
from kasparro.web.http.auth import HEALTH_PATHS
from kasparro.web.http.connections import ConnectionLimits, Connections
from kasparro.web.http.context import RequestContext
from kasparro.web.http.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Callable

log = structlog.get_logger()

# If the connection closes while the client still sends, the client may lose a response that was sent before
# (RFC 9112, 9.6). So its bytes are read and dropped for this time, and up to this number.
_LINGER_S = 2.0
_LINGER_BYTES = 1_048_576
# Connections are closed this long before uvicorn's drain ends, when it would cancel the running requests.
_BEFORE_CANCEL_S = 0.5
# Bytes that the transport buffers before the client counts as a slow reader.
_WRITE_BUFFER_BYTES = 16_384

_HEALTH_PATHS = frozenset(path.encode() for path in HEALTH_PATHS)


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The limits of one connection.

    A request must arrive within `request_s` of its first byte, the first one within `request_s` of the
    connection's start; on a reserve connection, within `reserve_s`. Behind the request that is being
    answered, `pipelined` more may wait, with `pipelined_bytes` in total. A slow client must read
    `drain_bytes` every `drain_s`.
    """

    request_s: float = 10.0
    reserve_s: float = 2.0
    request_bytes: int = 65_536
    url_bytes: int = 16_384
    headers: int = 100
    pipelined: int = 8
    pipelined_bytes: int = 16_384
    drain_s: float = 10.0
    drain_bytes: int = 16_384


class _RejectedError(Exception):
    # Raised in the parser's callbacks, to end parsing.
    pass


class LimitedProtocol(HttpToolsProtocol):
    """HTTP/1.1 with limits; its own error responses are problem documents.

    uvicorn's `limit_concurrency` is the number of connections; `Connections` divides them between clients.
    """

    limits: ClassVar[Limits] = Limits()

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.url = b""
        self._connections = _connections(server_state, self.limit_concurrency)
        # Otherwise uvicorn applies it too: in plain text, after the whole request, and to health checks.
        self.limit_concurrency = None
        self.on_shutdown: Callable[[], None] | None = None
        self.aborted = False
        self._client = ""
        self._reserved = False
        self._current: RequestResponseCycle | None = None
        # Whether uvicorn is starting a request that was pipelined behind another one.
        self._starting_pipelined = False
        # The arriving request.
        self._receiving = False
        self._began = False
        self._header_complete = False
        self._received = 0
        self._header_bytes = 0
        self._pipelined_bytes = 0
        # After a rejection, further bytes are dropped.
        self._rejected = False
        self._discarded = 0
        self._rejection: Problem | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._drain: asyncio.TimerHandle | None = None

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES)
        peer = self.client[0] if self.client else ""
        self._client = client_name(peer)
        is_proxy = peer in _proxies(str(self.config.forwarded_allow_ips))
        self._reserved = not self._connections.open(self, self._client, is_proxy=is_proxy)
        wait_s = self.limits.reserve_s if self._reserved else self.limits.request_s
        self._deadline = self.loop.call_later(wait_s, self._expire)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.close(self)
        self._end_deadline()
        self._end_drain()
        self._disconnect()
        super().connection_lost(exc)

    def _disconnect(self) -> None:
        # uvicorn disconnects only the newest request. The one being answered would write to a closed
        # transport, which logs an error.
        self.pipeline.clear()
        if self._current is not None and not self._current.response_complete:
            self._current.disconnected = True
            self._current.message_event.set()

    def shutdown(self) -> None:
        super().shutdown()
        if self.on_shutdown is not None:
            self.on_shutdown()
        grace = self.config.timeout_graceful_shutdown
        if grace is not None:
            self.loop.call_later(max(0.0, grace - _BEFORE_CANCEL_S), self.abort)

    def abort(self) -> None:
        """Close the connection at once, and drop what waits to be sent."""
        self._rejected = self.aborted = True
        self._disconnect()
        raw = self.transport.get_extra_info("socket")
        if raw is not None and not self.transport.is_closing():
            # With a reset. Otherwise the kernel would keep its buffer for a client that never reads it.
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # Later, because the caller may be in the middle of a write.
        self.loop.call_soon(self.transport.abort)

    # Requests

    def data_received(self, data: bytes) -> None:
        if self._rejected:
            self._discard(data)
            return
        self._began = False
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # No upgrade is supported. The request is answered and the connection closed, because further
            # bytes may belong to the other protocol.
            self._end_after_response()
            return
        except httptools.HttpParserError:
            self._reject(self._rejection or Problem(400, "This is not an HTTP/1.1 request."))
            return
        if self._receiving:
            self._received += _last_request_bytes(data) if self._began else len(data)
            if self._received > self.limits.request_bytes:
                self._reject(self._too_large())
            elif self._deadline is None:
                self._deadline = self.loop.call_later(self.limits.request_s, self._expire)

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= self.limits.pipelined:
            raise _RejectedError
        # uvicorn restarts this timer at every byte, so newlines between requests would hold a connection.
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None
        self._receiving = True
        self._began = True
        self._header_complete = False
        self._received = 0
        self._header_bytes = 0
        super().on_message_begin()

        # So that the application can abort it.
        self.scope["kasparro.connection"] = self  # type: ignore[typeddict-unknown-key]

    def on_url(self, url: bytes) -> None:
        self.url += url
        if len(self.url) > self.limits.url_bytes:
            self._reject_in_parser(Problem(414, f"A URL has at most {self.limits.url_bytes} bytes."))

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._header_complete:
            # This is a trailer, not a header (RFC 9110, 6.5.1).
            return
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > self.limits.request_bytes or len(self.headers) >= self.limits.headers:
            self._reject_in_parser(self._too_large())
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._header_complete = True
        if self._reserved and self.url.partition(b"?")[0] not in _HEALTH_PATHS:
            self._reject_in_parser(_too_many_connections())
        if self._answering():
            self._pipelined_bytes += self._header_bytes + len(self.url)
            if self._pipelined_bytes > self.limits.pipelined_bytes:
                raise _RejectedError
        else:
            self._pipelined_bytes = 0
        super().on_headers_complete()
        if self._reserved:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        self._receiving = False
        if self._deadline is not None:
            self._end_deadline()
        super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._current = cycle
        if self._starting_pipelined:
            self._connections.schedule(self._client, partial(self._start_pipelined, cycle, app))
        else:
            super()._start_asgi_task(cycle, app)

    def _start_pipelined(self, cycle: RequestResponseCycle, app: Any) -> None:
        if not cycle.disconnected:
            super()._start_asgi_task(cycle, app)

    @property
    def connection_limit(self) -> int:
        """How many connections the server serves at once."""
        return self._connections.total

    @property
    def pipelining(self) -> bool:
        """Whether another request waits behind the one that is being answered."""
        return bool(self.pipeline)

    def _expire(self) -> None:
        self._deadline = None
        if self.flow.read_paused:
            # We do not read the rest yet, because earlier requests are still being answered.
            self._deadline = self.loop.call_later(self.limits.request_s, self._expire)
        elif self._answering() or (self._receiving and not self._answered_early()):
            self._reject(Problem(408, "The request did not arrive in time."))
        else:
            # No byte of a request arrived, or only the body is missing of a request that has been answered.
            self.transport.close()
            self._watch_reader()

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _answered_early(self) -> bool:
        # Whether the arriving request was answered before its body was complete.
        return self.cycle is not None and self.cycle.scope is self.scope

    def timeout_keep_alive_handler(self) -> None:
        if self._receiving:
            # The deadline of the request applies.
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        else:
            super().timeout_keep_alive_handler()
            self._watch_reader()

    # Rejections

    def _reject_in_parser(self, problem: Problem) -> None:
        self._rejection = problem
        raise _RejectedError

    def _too_large(self) -> Problem:
        return Problem(
            431,
            f"A request has at most {self.limits.headers} headers and {self.limits.request_bytes} bytes.",
        )

    def _end_after_response(self) -> None:
        self._rejected = True
        self._end_deadline()
        if self._answering():
            # Its client would take an error response now for the response to an earlier request.
            self.cycle.keep_alive = False

    def _reject(self, problem: Problem) -> None:
        self._end_after_response()
        if not self._answering() and not self.transport.is_closing():
            self._write(problem)
            self.transport.write_eof()
            self._deadline = self.loop.call_later(_LINGER_S, self.transport.abort)

    def _discard(self, data: bytes) -> None:
        self._discarded += len(data)
        if self._discarded > _LINGER_BYTES:
            self.flow.pause_reading()

    def _write(self, problem: Problem) -> None:
        context = RequestContext({})
        path = self.url.partition(b"?")[0].decode("latin-1")
        body = problems.document(problem, path, context.request_id)
        headers = {
            **(problem.headers or {}),
            "content-type": problems.MEDIA_TYPE,
            "content-length": str(len(body)),
            "connection": "close",
            "x-request-id": context.request_id,
            "server-timing": context.server_timing().decode(),
            "x-content-type-options": "nosniff",
        }
        lines = [
            f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}".encode(),
            *(name + b": " + value for name, value in self.server_state.default_headers),
            *(f"{name.lower()}: {value}".encode() for name, value in headers.items()),
        ]
        self.transport.write(b"\r\n".join(lines) + b"\r\n\r\n" + body)
        log.debug(
            "request_rejected",
            status=problem.status,
            reason=problem.detail,
            path=quote(path[:1_000]),
            request_id=context.request_id,
        )

    def _end_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    # Slow readers

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self._end_drain()

    def on_response_complete(self) -> None:
        self._starting_pipelined = True
        super().on_response_complete()
        self._starting_pipelined = False
        if self.transport.is_closing():
            self._watch_reader()

    def _watch_reader(self) -> None:
        # Also while the transport closes: it sends its buffer first. A client that does not read delays that.
        unsent = self.transport.get_write_buffer_size()
        if unsent and self._drain is None:
            self._drain = self.loop.call_later(self.limits.drain_s, self._check_reader, unsent)
            self._connections.set_unsent(self, self._client, unsent)

    def _check_reader(self, before: int) -> None:
        self._drain = None
        unsent = self.transport.get_write_buffer_size()
        if unsent > before - self.limits.drain_bytes:
            log.debug("unread_response_aborted", bytes=unsent, address=self._client)
            self.abort()
        else:
            self._watch_reader()

    def _end_drain(self) -> None:
        self._connections.clear_unsent(self)
        if self._drain is not None:
            self._drain.cancel()
            self._drain = None


_BLANK_LINE = b"\r\n\r\n"


def _last_request_bytes(data: bytes) -> int:
    # The number of bytes that belong to the last request in the data; the requests before it are complete.
    return len(data) - (data.rfind(_BLANK_LINE) + len(_BLANK_LINE) if _BLANK_LINE in data else 0)


_BY_SERVER: WeakKeyDictionary[ServerState, Connections] = WeakKeyDictionary()


def _connections(server: ServerState, total: int | None) -> Connections:
    if server not in _BY_SERVER:
        _BY_SERVER[server] = Connections(ConnectionLimits.of(total or 2**31))
    return _BY_SERVER[server]


@lru_cache(maxsize=8)
def _proxies(setting: str) -> TrustedProxies:
    return TrustedProxies(filter(None, setting.split(",")))


def _too_many_connections() -> Problem:
    return Problem(
        503,
        "Too many connections, of this client or in total. For now only paths under /health are answered. "
        "Try again soon, and reuse connections instead of opening more.",
        kind="too-many-connections",
        title="Too many connections",
        headers={"Retry-After": str(problems.RETRY_AFTER_S)},
    )
