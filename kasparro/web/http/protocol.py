"""What a connection may cost: uvicorn's HTTP protocol with bounds on time, bytes and number.

These bounds protect a port that clients reach without a proxy. Under another ASGI server, that server's own
bounds count; the application itself works the same.
"""

import asyncio
import socket
import struct
from functools import lru_cache, partial
from http import HTTPStatus
from typing import Any, ClassVar
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

log = structlog.get_logger()

# An answer given early is lost if the connection is closed under a client that still sends (RFC 9112, 9.6),
# so what it sends is read for a while, but no more than this of it.
_LINGER_S = 2.0
_LINGER_BYTES = 1_048_576
# Connections are cut this long before uvicorn's drain ends, which would cancel what still sends on them.
_BEFORE_CANCEL_S = 0.5
# What the transport holds back of an answer before it counts as waiting for its client.
_WRITE_BUFFER_BYTES = 16_384

_HEALTH_PATHS = frozenset(path.encode() for path in HEALTH_PATHS)


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What one connection may take.

    A request has `request_s` to arrive, from its first byte, the first of a connection from its opening; one
    in the reserve has `reserve_s`. Behind the request that is being answered `ahead` more may wait, of
    `pipelined_bytes` together. A client that does not read has to take `drain_bytes` every `drain_s`.
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


class _RefusedError(Exception):
    # Raised out of the parser's callbacks, which ends the parsing.
    pass


class LimitedProtocol(HttpToolsProtocol):
    """HTTP/1.1 whose connections and requests are bounded, and whose own errors are problem documents.

    `limit_concurrency` is the number of connections that are served; `Connections` shares them out.
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
        # uvicorn's own answer is plain text, comes after the whole request, and health gets it too.
        self.limit_concurrency = None
        self._name = ""
        self._reserved = False
        self._current: RequestResponseCycle | None = None
        # Whether a request that starts now was sent ahead, before the answer to the one before it.
        self._next_ahead = False
        # The request that is arriving: whether there is one, whether its header is complete, and its size.
        self._receiving = False
        self._began = False
        self._header_complete = False
        self._received = 0
        self._header_bytes = 0
        self._ahead_bytes = 0
        # After a refusal, what the client sends is thrown away.
        self._refused = False
        self._discarded = 0
        self._refusal: Problem | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._drain: asyncio.TimerHandle | None = None

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES)
        peer = self.client[0] if self.client else ""
        self._name = client_name(peer)
        is_proxy = peer in _proxies(_setting(self.config.forwarded_allow_ips))
        self._reserved = not self._connections.open(self, self._name, is_proxy=is_proxy)
        wait_s = self.limits.reserve_s if self._reserved else self.limits.request_s
        self._deadline = self.loop.call_later(wait_s, self._expire)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.close(self)
        self._end_deadline()
        self._end_drain()
        self._disconnect()
        super().connection_lost(exc)

    def _disconnect(self) -> None:
        # uvicorn does so for the newest request alone. The one that is being answered would go on and write
        # to a closed transport, which is an error.
        self.pipeline.clear()
        if self._current is not None and not self._current.response_complete:
            self._current.disconnected = True
            self._current.message_event.set()

    def shutdown(self) -> None:
        super().shutdown()
        grace = self.config.timeout_graceful_shutdown
        if grace is not None:
            self.loop.call_later(max(0.0, grace - _BEFORE_CANCEL_S), self.cut)

    def cut(self) -> None:
        """End the connection at once, without what waits to be sent."""
        self._refused = True
        self._disconnect()
        raw = self.transport.get_extra_info("socket")
        if raw is not None and not self.transport.is_closing():
            # With a reset: the kernel would keep what it has for a client that never reads it.
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # Not from within a write, which may be what found that there is too much.
        self.loop.call_soon(self.transport.abort)

    # Requests

    def data_received(self, data: bytes) -> None:
        if self._refused:
            self._discard(data)
            return
        self._began = False
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # Nothing is upgraded to here. The request is answered as it is, and the connection ends: what
            # follows might be of the protocol that was asked for.
            self._end_after_answer()
            return
        except httptools.HttpParserError:
            self._refuse(self._refusal or Problem(400, "This is no HTTP/1.1 request."))
            return
        if self._receiving:
            self._received += _of_last_request(data) if self._began else len(data)
            if self._received > self.limits.request_bytes:
                self._refuse(self._too_large())
            elif self._deadline is None:
                self._deadline = self.loop.call_later(self.limits.request_s, self._expire)

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= self.limits.pipelined:
            raise _RefusedError
        # Not with every byte, as uvicorn does: line ends between requests would keep a connection for ever.
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None
        self._receiving = True
        self._began = True
        self._header_complete = False
        self._received = 0
        self._header_bytes = 0
        super().on_message_begin()

        # For what `send` cannot do.
        self.scope["kasparro.connection"] = self  # type: ignore[typeddict-unknown-key]

    def on_url(self, url: bytes) -> None:
        self.url += url
        if len(self.url) > self.limits.url_bytes:
            self._refuse_with(Problem(414, f"A URL has {self.limits.url_bytes} bytes at most."))

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._header_complete:
            # A trailer, which is no header (RFC 9110, 6.5.1).
            return
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > self.limits.request_bytes or len(self.headers) >= self.limits.headers:
            self._refuse_with(self._too_large())
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._header_complete = True
        if self._reserved and self.url.partition(b"?")[0] not in _HEALTH_PATHS:
            self._refuse_with(_too_many_connections())
        if self._answering():
            self._ahead_bytes += self._header_bytes + len(self.url)
            if self._ahead_bytes > self.limits.pipelined_bytes:
                raise _RefusedError
        else:
            self._ahead_bytes = 0
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
        if self._next_ahead:
            self._connections.take_turn(self._name, partial(self._start_ahead, cycle, app))
        else:
            super()._start_asgi_task(cycle, app)

    def _start_ahead(self, cycle: RequestResponseCycle, app: Any) -> None:
        if not cycle.disconnected:
            super()._start_asgi_task(cycle, app)

    @property
    def pipelining(self) -> bool:
        """Whether another request waits for the answer to this one."""
        return bool(self.pipeline)

    def _expire(self) -> None:
        self._deadline = None
        if self.flow.read_paused:
            # The rest waits for us, behind the answers to requests before it.
            self._deadline = self.loop.call_later(self.limits.request_s, self._expire)
        elif self._answering() or (self._receiving and not self._answered()):
            self._refuse(Problem(408, "The request did not arrive in time."))
        else:
            # Nothing came at all, or only the body is missing of a request that has its answer.
            self.transport.close()
            self._watch()

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _answered(self) -> bool:
        # Whether the request that is coming in has had its answer before its body was whole.
        return self.cycle is not None and self.cycle.scope is self.scope

    def timeout_keep_alive_handler(self) -> None:
        if self._receiving:
            # The deadline of the request counts.
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        else:
            super().timeout_keep_alive_handler()
            self._watch()

    # Refusals

    def _refuse_with(self, problem: Problem) -> None:
        self._refusal = problem
        raise _RefusedError

    def _too_large(self) -> Problem:
        return Problem(
            431,
            f"A request has {self.limits.headers} headers and {self.limits.request_bytes} bytes at most.",
        )

    def _end_after_answer(self) -> None:
        self._refused = True
        self._end_deadline()
        if self._answering():
            # An answer out of turn would be taken for another request's: that one is the last.
            self.cycle.keep_alive = False

    def _refuse(self, problem: Problem) -> None:
        self._end_after_answer()
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

    # Readers

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self._end_drain()

    def on_response_complete(self) -> None:
        self._next_ahead = True
        super().on_response_complete()
        self._next_ahead = False
        if self.transport.is_closing():
            self._watch()

    def _watch(self) -> None:
        # A transport closes when it has sent everything, which a client that does not read can put off.
        left = self.transport.get_write_buffer_size()
        if left and self._drain is None:
            self._drain = self.loop.call_later(self.limits.drain_s, self._look_after, left)
            self._connections.wait(self, self._name, left)

    def _look_after(self, before: int) -> None:
        self._drain = None
        left = self.transport.get_write_buffer_size()
        if left > before - self.limits.drain_bytes:
            log.debug("unread_response_aborted", bytes=left, address=self._name)
            self.cut()
        else:
            self._watch()

    def _end_drain(self) -> None:
        self._connections.read(self)
        if self._drain is not None:
            self._drain.cancel()
            self._drain = None


_BLANK_LINE = b"\r\n\r\n"


def _of_last_request(data: bytes) -> int:
    # How many bytes belong to the request that the data ends with; those before it are complete.
    return len(data) - (data.rfind(_BLANK_LINE) + len(_BLANK_LINE) if _BLANK_LINE in data else 0)


_OF_SERVERS: WeakKeyDictionary[ServerState, Connections] = WeakKeyDictionary()


def _connections(server: ServerState, most: int | None) -> Connections:
    if server not in _OF_SERVERS:
        _OF_SERVERS[server] = Connections(ConnectionLimits.of(most or 2**31))
    return _OF_SERVERS[server]


def _setting(proxies: list[str] | str) -> str:
    return proxies if isinstance(proxies, str) else ",".join(proxies)


@lru_cache(maxsize=8)
def _proxies(setting: str) -> TrustedProxies:
    return TrustedProxies(filter(None, setting.split(",")))


def _too_many_connections() -> Problem:
    return Problem(
        503,
        "There are too many connections, of this client or of all. Only the paths under /health are answered "
        "now; try again soon, and keep connections open in place of opening more.",
        kind="too-many-connections",
        title="Too many connections",
        headers={"Retry-After": str(problems.RETRY_AFTER_S)},
    )


# What is overridden must be there: an upgrade of uvicorn that renames it would leave it without effect.
_OVERRIDDEN = (
    "connection_made", "connection_lost", "shutdown", "data_received", "on_message_begin", "on_url",
    "on_header", "on_headers_complete", "on_message_complete", "on_response_complete", "_start_asgi_task",
    "timeout_keep_alive_handler", "pause_writing", "resume_writing",
)  # fmt: skip
if missing := [name for name in _OVERRIDDEN if name not in vars(HttpToolsProtocol)]:
    raise ImportError(f"this version of uvicorn has no HttpToolsProtocol.{missing[0]}")
