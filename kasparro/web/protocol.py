"""What a connection may cost: uvicorn's HTTP protocol with bounds on time, bytes and number."""

import asyncio
import heapq
import socket
import struct
from http import HTTPStatus
from typing import Any, ClassVar
from urllib.parse import quote

import httptools
import msgspec
import structlog
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from kasparro.web import problems
from kasparro.web.exchange import Exchange
from kasparro.web.problems import Problem

log = structlog.get_logger()

# What of a large chunk is parsed at once, so that the bounds are looked at in between.
_SLICE_BYTES = 16_384
# How often at most the log tells that there are too many connections.
_TOLD_EVERY_S = 60
# An answer given early is lost if the connection is closed under a client that still sends (RFC 9112, 9.6).
_LINGER_S = 2.0
# By so much a connection is cut before uvicorn's drain ends, which would cancel what still sends on it.
_BEFORE_CANCEL_S = 0.5


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What one connection may take.

    A request has `request_s` to arrive, from its first byte, the first of a connection from its opening. A
    client that does not read has to take `drain_bytes` every `drain_s`.
    """

    request_s: float = 10.0
    request_bytes: int = 65_536
    url_bytes: int = 16_384
    pipelined: int = 64
    drain_s: float = 10.0
    drain_bytes: int = 16_384


class _RefusedError(Exception):
    # Raised out of the parser's callbacks, which ends the parsing.
    pass


class LimitedProtocol(HttpToolsProtocol):
    """HTTP/1.1 whose connections and requests are bounded, and whose own errors are problem documents.

    `limit_concurrency` is the number of connections. One more takes the place of those that have waited
    longest without a whole request; where all are being answered, it gets a 503.
    """

    limits: ClassVar[Limits] = Limits()
    _told_at: ClassVar[float] = float("-inf")

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.url = b""
        self._most = self.limit_concurrency
        # uvicorn's own answer is plain text, and comes after the request that it should not wait for.
        self.limit_concurrency = None
        self._receiving = False
        self._received = 0
        self._refused = False
        self._refusal: Problem | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._drain: asyncio.TimerHandle | None = None

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._deadline = self.loop.call_later(self.limits.request_s, self._expire)
        if self._most is not None and len(self.connections) > self._most:
            self._make_room(self._most)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_deadline()
        self._end_drain()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        super().shutdown()
        grace = self.config.timeout_graceful_shutdown
        if grace is not None:
            self.loop.call_later(max(0.0, grace - _BEFORE_CANCEL_S), self._cut)

    def _cut(self) -> None:
        # With a reset, since to a client of HTTP/1.0 an end looks like that of its answer.
        _reset_at_close(self.transport, True)
        self.transport.abort()

    def _make_room(self, most: int) -> None:
        now = self.loop.time()
        if now - LimitedProtocol._told_at > _TOLD_EVERY_S:
            LimitedProtocol._told_at = now
            log.warning("too many connections; those that wait make room", limit=most)
        waiting = [
            (timer.when(), id(one), one)
            for one in self.connections
            if isinstance(one, LimitedProtocol) and one is not self and (timer := one._waits())  # noqa: SLF001
        ]
        # Several at once, so that a flood does not cost a look at every connection each time.
        for _, _, one in heapq.nsmallest(max(1, most // 16), waiting):
            one._leave()  # noqa: SLF001
        # Those that get a 503 linger a little; there is an end to that too.
        if not waiting:
            if len(self.connections) > most + max(8, most // 4):
                self.transport.abort()
            else:
                self._refuse(
                    Problem(
                        503,
                        "There are too many connections; try again soon.",
                        kind="too-many-connections",
                        title="Too many connections",
                        headers={"Retry-After": str(problems.RETRY_AFTER_S)},
                    )
                )

    def _waits(self) -> asyncio.TimerHandle | None:
        # The timer of a connection that nothing is done for.
        if self._answering() or self.transport.is_closing() or self.transport.get_write_buffer_size():
            return None
        return self._deadline or self.timeout_keep_alive_task

    def _leave(self) -> None:
        if self._received and self._receiving and not self._refused and not self._answered():
            self._write(_too_slow())
        self._refused = True
        self.transport.close()

    # Requests

    def data_received(self, data: bytes) -> None:
        if len(data) <= _SLICE_BYTES:
            self._feed(data)
            return
        view = memoryview(data)
        for start in range(0, len(data), _SLICE_BYTES):
            self._feed(view[start : start + _SLICE_BYTES])

    def _feed(self, data: bytes | memoryview) -> None:
        if self._refused:
            return
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # Nothing is upgraded to here, so the request is answered as it is.
            pass
        except httptools.HttpParserError:
            self._refuse(self._refusal or Problem(400, "This is no HTTP/1.1 request."))
            return
        if self._receiving:
            self._received += len(data)
            if self._received > self.limits.request_bytes:
                self._refuse(
                    Problem(431, f"The headers of a request have {self.limits.request_bytes} bytes at most.")
                )
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
        self._received = 0
        super().on_message_begin()

        # What `send` cannot: end an answer in its midst, as where its client hangs up.
        self.scope["kasparro.cut"] = self._cut  # type: ignore[typeddict-unknown-key]

    def on_url(self, url: bytes) -> None:
        self.url += url
        if len(self.url) > self.limits.url_bytes:
            self._refusal = Problem(414, f"A URL has {self.limits.url_bytes} bytes at most.")
            raise _RefusedError

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        if self.scope["http_version"] == "1.0":
            self.cycle.send = _Unframed(self.cycle)  # type: ignore[method-assign]

    def on_message_complete(self) -> None:
        self._receiving = False
        if self._deadline is not None:
            self._end_deadline()
        super().on_message_complete()

    def _expire(self) -> None:
        self._deadline = None
        if self.flow.read_paused:
            # The rest waits for us, behind the answers to requests before it.
            self._deadline = self.loop.call_later(self.limits.request_s, self._expire)
        elif self._answering() or (self._receiving and not self._answered()):
            self._refuse(_too_slow())
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

    def _refuse(self, problem: Problem) -> None:
        # What comes after this is read and thrown away.
        self._refused = True
        self._end_deadline()
        if self._answering():
            # An answer out of turn would be taken for another request's: that one is the last.
            self.cycle.keep_alive = False
        elif not self.transport.is_closing():
            self._write(problem)
            self.transport.write_eof()
            self._deadline = self.loop.call_later(_LINGER_S, self.transport.abort)

    def _write(self, problem: Problem) -> None:
        exchange = Exchange({})
        path = self.url.partition(b"?")[0].decode("latin-1")
        body = problems.document(problem, path, exchange.request_id)
        headers = {
            **(problem.headers or {}),
            "content-type": problems.MEDIA_TYPE,
            "content-length": str(len(body)),
            "connection": "close",
            "x-request-id": exchange.request_id,
            "server-timing": exchange.server_timing().decode(),
            "x-content-type-options": "nosniff",
        }
        lines = [
            f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}".encode(),
            *(name + b": " + value for name, value in self.server_state.default_headers),
            *(f"{name.lower()}: {value}".encode() for name, value in headers.items()),
        ]
        self.transport.write(b"\r\n".join(lines) + b"\r\n\r\n" + body)
        log.debug(
            "refused",
            status=problem.status,
            reason=problem.detail,
            path=quote(path[:1_000]),
            request_id=exchange.request_id,
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
        super().on_response_complete()
        if self.transport.is_closing():
            self._watch()

    def _watch(self) -> None:
        # A transport closes when it has sent everything, which a client that does not read can put off.
        left = self.transport.get_write_buffer_size()
        if left and self._drain is None:
            self._drain = self.loop.call_later(self.limits.drain_s, self._look_after, left)

    def _look_after(self, before: int) -> None:
        self._drain = None
        left = self.transport.get_write_buffer_size()
        if left > before - self.limits.drain_bytes:
            log.debug("cut: the client does not read", bytes=left)
            self._cut()
        else:
            self._watch()

    def _end_drain(self) -> None:
        if self._drain is not None:
            self._drain.cancel()
            self._drain = None


class _Unframed:
    # Sends a cycle's answers to a client of HTTP/1.0, which knows no chunks (RFC 9112, 6.1): a body whose
    # length is not told ends with the connection, and one that breaks off ends with its reset.

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._send = cycle.send
        self._open_ended = False

    async def __call__(self, message: Any) -> None:
        cycle = self._cycle
        if message["type"] == "http.response.start":
            names = {name.lower() for name, _ in message.get("headers", [])}
            self._open_ended = b"content-length" not in names
            if self._open_ended:
                cycle.chunked_encoding = False
                _reset_at_close(cycle.transport, True)
        elif self._open_ended:
            # What uvicorn holds a body of told length against.
            cycle.expected_content_length = len(message.get("body", b""))
            if not message.get("more_body", False):
                _reset_at_close(cycle.transport, False)
        await self._send(message)


def _reset_at_close(transport: asyncio.Transport, reset: bool) -> None:
    line = transport.get_extra_info("socket")
    if line is not None and not transport.is_closing():
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", reset, 0))


def _too_slow() -> Problem:
    return Problem(408, "The request did not arrive in time.")


# What is taken over must be there: an upgrade of uvicorn that renames it would leave it without effect.
_TAKEN_OVER = [
    name for name, one in vars(LimitedProtocol).items() if callable(one) and not name.startswith("_")
]
if missing := [name for name in _TAKEN_OVER if name not in vars(HttpToolsProtocol)]:
    raise ImportError(f"this version of uvicorn has no HttpToolsProtocol.{missing[0]}")
